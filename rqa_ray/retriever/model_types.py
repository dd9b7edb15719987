"""The table of transformers' model types: which are computed without padding, how they attend, where positions start.

To add a type, add a line. The test of this table then compares packed texts of the new type with padded ones, and with
sentence-transformers.

The table does not need to say three things. Each layer tells `packed_attention` its own sliding window, so layers may
differ. The tokens that end a text come from the tokenizer. And no model keeps keys and values for the next token,
because sentence-transformers sets `use_cache` to False in the config of every model that it loads.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelType:
    """What the forward pass has to know about a model type."""

    packed: bool = True  # whether texts are packed; their attention must have no bias of its own
    causal: bool = False  # whether a token attends to itself and earlier tokens only, unless the config says otherwise
    window: bool = False  # whether layers may attend to near tokens only, as `sliding_window` of the config says
    positions_after_padding: bool = False  # whether positions start behind the id of the padding token, and not at 0


_PADDED_AFTER_PADDING = ModelType(packed=False, positions_after_padding=True)

MODEL_TYPES = {
    "albert": ModelType(),
    "bert": ModelType(),
    "camembert": ModelType(positions_after_padding=True),
    "distilbert": ModelType(),
    "electra": ModelType(),
    "ernie": ModelType(),
    "eurobert": ModelType(),
    "gemma3_text": ModelType(causal=True, window=True),  # EmbeddingGemma's config says that it is not causal
    "gte": ModelType(),
    "jina_embeddings_v3": ModelType(),
    "llama": ModelType(causal=True),
    "mistral": ModelType(causal=True, window=True),
    "modernbert": ModelType(window=True),
    "nomic_bert": ModelType(),
    "qwen2": ModelType(causal=True, window=True),
    "qwen3": ModelType(causal=True, window=True),
    "roberta": ModelType(positions_after_padding=True),
    "xlm-roberta": ModelType(positions_after_padding=True),
    # Padded. MPNet, T5 and DeBERTa add a bias to each score, which depends on the places of both tokens.
    "deberta": ModelType(packed=False),
    "deberta-v2": ModelType(packed=False),
    "mpnet": _PADDED_AFTER_PADDING,
    "t5": ModelType(packed=False),
    "data2vec-text": _PADDED_AFTER_PADDING,
    "esm": _PADDED_AFTER_PADDING,
    "ibert": _PADDED_AFTER_PADDING,
    "lilt": _PADDED_AFTER_PADDING,
    "longformer": _PADDED_AFTER_PADDING,
    "luke": _PADDED_AFTER_PADDING,
    "roberta-prelayernorm": _PADDED_AFTER_PADDING,
    "xlm-roberta-xl": _PADDED_AFTER_PADDING,
    "xmod": _PADDED_AFTER_PADDING,
}


def model_type(name: str) -> ModelType:
    """Returns what the table says about a type (`model_type` in config.json); a type that is not in it is padded."""
    return MODEL_TYPES.get(name, ModelType(packed=False))


def is_causal(config: Any) -> bool:
    """Returns whether the model of a config is causal: its tokens attend to themselves and earlier tokens only."""
    is_bidirectional = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    return model_type(config.model_type).causal and not is_bidirectional
