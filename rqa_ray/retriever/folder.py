"""The one reader and writer of model folders, in the sentence-transformers layout; weights are loaded strictly.

A folder is a Hugging Face encoder (config, safetensors, tokenizer) with sentence-transformers' files beside it:
`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` and `config_sentence_transformers.json`. They say
how the model pools, whether it normalises, how long its texts may be and which prompts it wants.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import POOLING_FLAGS, EncoderSettings, transformer_folder


def load_encoder(
    folder: str,
    settings: EncoderSettings,
    dropout: float | None = None,
    trust_remote_code: bool = False,
    bf16: bool = False,
) -> Encoder:
    """The encoder of a folder, in fp32 or bf16 on the CPU, in training mode; `dropout` overrides the model's own.

    Raises:
        InputError: weights are missing or have another shape, or the folder cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading is no long work
    path = str(transformer_folder(folder))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        own_dropout = _set_dropout(config, dropout)
        transformer, info = AutoModel.from_pretrained(
            path,
            config=config,
            dtype="bfloat16" if bf16 else "float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the model cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        names = sorted(missing) or sorted(str(mismatch[0]) for mismatch in info["mismatched_keys"])
        what = f"weights {'are missing' if missing else 'have another shape'}: {', '.join(names[:3])}"
        raise InputError(f"{folder}: {what}; pass a folder whose weights belong to its config.json")
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        transformer.pooler = None  # random weights would be saved as if they were the model's
    encoder = Encoder(transformer, settings).train()
    encoder.own_dropout = own_dropout
    return encoder


def load_weights(encoder: Encoder, folder: str, trust_remote_code: bool = False) -> None:
    """Copies the weights of a saved folder into an encoder of the same kind; strict.

    Raises:
        InputError, RuntimeError: the weights are not this encoder's.
    """
    saved = load_encoder(folder, encoder.settings, trust_remote_code=trust_remote_code)
    encoder.load_state_dict(saved.state_dict(), strict=True)


def save_encoder(encoder: Encoder, tokenizer: Any, folder: str) -> None:
    """Writes weights, tokenizer and settings so that `SentenceTransformer(folder)` gives the same embeddings."""
    root, settings = Path(folder), encoder.settings
    config, used = encoder.transformer.config, {}
    for name, value in encoder.own_dropout.items():  # the run's dropout is no property of the model
        used[name] = getattr(config, name)
        setattr(config, name, value)
    encoder.transformer.save_pretrained(root)
    for name, value in used.items():
        setattr(config, name, value)
    tokenizer.model_max_length = settings.max_seq_length
    tokenizer.save_pretrained(root)

    modules = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    dimension = encoder.transformer.config.hidden_size
    pooling: dict[str, Any] = {"word_embedding_dimension": dimension}
    # The names of sentence-transformers 2 to 5; version 6 reads them too.
    pooling |= {flag: name == settings.pooling for name, flag in POOLING_FLAGS.items()}
    _write_json(
        root / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(zip(modules, paths, strict=False))
        ],
    )
    _write_json(root / "1_Pooling" / "config.json", pooling)
    _write_json(
        root / "sentence_bert_config.json", {"max_seq_length": settings.max_seq_length, "do_lower_case": False}
    )
    _write_json(
        root / "config_sentence_transformers.json",
        {
            "prompts": {"query": settings.query_prefix, "document": settings.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": settings.similarity,
        },
    )


def _set_dropout(config: Any, dropout: float | None) -> dict[str, float]:
    """Sets every dropout probability of a config; returns what they were."""
    if dropout is None:
        return {}
    own = {
        name: value
        for name, value in vars(config).items()
        if "drop" in name and "layer" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in own:
        setattr(config, name, dropout)
    return own


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
