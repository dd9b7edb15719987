"""Cuts embeddings to their first dimensions, as models do that were trained for this (Kusupati et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig

from rqa_ray.errors import InputError
from rqa_ray.places import ALL_ARGS_FILE, read_any_json
from rqa_ray.retriever.encoder_settings import ModelSpec, modules_of, transformer_folder


def cut(embeddings: torch.Tensor, dimensions: int, similarity: str) -> torch.Tensor:
    """Returns the first dimensions of embeddings (N, D), at unit length again if they are compared by cosine."""
    if dimensions >= embeddings.shape[1]:
        return embeddings
    embeddings = embeddings[:, :dimensions]
    return nn.functional.normalize(embeddings, dim=1) if similarity == "cosine" else embeddings


def trained_dimensions(folder: str) -> list[int]:
    """Returns the dimensions to which a model was trained to be cut, if `jobs/train.py` has written its folder."""
    arguments = read_any_json(Path(folder) / ALL_ARGS_FILE, {})
    return (isinstance(arguments, dict) and arguments.get("matryoshka_dims")) or []


def refuse_more_than(own: int, wanted: Sequence[int]) -> None:
    """Raises InputError if some of the dimensions that are wanted are more than those that a model has."""
    if max(wanted, default=0) > own:
        raise InputError(f"--matryoshka_dims {max(wanted)}: the model's embeddings have {own} dimensions")


def check_dimensions(spec: ModelSpec, wanted: Sequence[int]) -> None:
    """Does `refuse_more_than` before the weights are loaded, if a file of the model says its number of dimensions."""
    if not wanted:
        return
    folder, options = transformer_folder(spec.folder), {"local_files_only": not spec.trust_remote_code}
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=spec.trust_remote_code, **options)
    hidden = getattr(config.get_text_config(), "hidden_size", None)
    pooled = hidden and hidden * len(spec.settings.pooling.split("+"))
    dense = [path for kind, path in modules_of(spec.folder) if kind == "Dense"]
    found = read_any_json(dense[-1] / "config.json", {}).get("out_features") if dense else pooled
    if found:
        refuse_more_than(min(found, spec.settings.truncate_dim or found), wanted)
