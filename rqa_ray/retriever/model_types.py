"""The table of transformers' model types: which are computed without padding, and where positions start.

To add a type, add a line. The test of this table then compares packed texts of the new type with padded ones, and with
sentence-transformers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelType:
    """What the forward pass has to know about a model type."""

    packed: bool = True  # whether texts are packed; their attention must have no bias of its own
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
    "gte": ModelType(),
    "jina_embeddings_v3": ModelType(),
    "nomic_bert": ModelType(),
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
