"""Makes random models for tests: folders as transformers and sentence-transformers write them."""

import string
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, BertTokenizerFast, PreTrainedConfig

from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder

CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
SMALL: dict[str, Any] = {
    "vocab_size": 150,
    "hidden_size": 32,
    "dim": 32,  # distilbert's names
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "embedding_size": 32,
    "max_position_embeddings": 500,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}


def save_tokenizer(folder: Path, pad_id: int = 0, **options: Any) -> None:
    """Saves a BERT tokenizer whose word pieces are single characters."""
    tokens = VOCABULARY[1:]
    tokens.insert(pad_id, VOCABULARY[0])
    vocab = {token: number for number, token in enumerate(tokens)}
    BertTokenizerFast(vocab=vocab, model_max_length=64, **options).save_pretrained(folder)


def save_model(folder: Path, config: PreTrainedConfig, **tokenizer: Any) -> str:
    """Saves a bare model with the weights of seed 0."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, config.pad_token_id or 0, **tokenizer)
    return str(folder)


def small_model(folder: Path, model_type: str, tokenizer: dict[str, Any] | None = None, **more: Any) -> str:
    """Saves a bare model of a type with 2 layers; `tokenizer` has options of its tokenizer."""
    return save_model(folder, AutoConfig.for_model(model_type, **{**SMALL, **more}), **(tokenizer or {}))


def small_encoder(folder: Path, model_type: str, **more: Any) -> Encoder:
    """Makes such a model and loads it as an encoder."""
    return load_encoder(small_model(folder, model_type, **more), EncoderSettings())
