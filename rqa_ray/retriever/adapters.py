"""LoRA (Hu et al. 2021): trains two small matrices beside each frozen linear layer of the transformer, with peft.

An adapted layer computes W x + (alpha / r) B A x. W is frozen; A (r, inputs) and B (outputs, r) are trained, and B
begins as zeros. A model folder gets the sum W + (alpha / r) B A, so whoever opens the folder needs no peft.

The files of an adapter are those that peft writes, so `PeftModel.from_pretrained` reads them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import ModelSpec, transformer_folder
from rqa_ray.settings import LoraSettings

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ALL_LAYERS = "all-linear"  # peft's name for them
_NAME = "default"  # of our adapter; a layer may have several
_PREFIX = "base_model.model."  # where peft puts a model


def add_adapters(encoder: Encoder, lora: LoraSettings, base: str, seed: int) -> None:
    """Freezes an encoder, its head included, and adds adapters to its transformer.

    The embeddings stay the same until the adapters are trained. `base` is the name of the model, for the files of the
    adapter. The first values depend on the seed alone, so all ranks have the same.

    Raises:
        InputError: the transformer has no layer that `--lora_target` names.
    """
    encoder.requires_grad_(False)
    _adapt(encoder.transformer, lora, base, seed)


def check_lora(lora: LoraSettings, spec: ModelSpec) -> str:
    """Adds adapters to a model without weights; returns a line about them, or nothing if the model's code is its own.

    Raises:
        InputError: the transformer has no layer that `--lora_target` names.
    """
    from transformers import AutoConfig, AutoModel

    if spec.trust_remote_code:
        return ""
    with torch.device("meta"):
        folder, options = transformer_folder(spec.folder), {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **options)
        transformer = AutoModel.from_config(config, trust_remote_code=False)
    if config.is_encoder_decoder:
        transformer = transformer.get_encoder()
    _adapt(transformer, lora, spec.folder, 0)
    parts = _matrices(transformer).values(), transformer.parameters()
    trained, all_of_them = (sum(value.numel() for value in part) for part in parts)
    return f"{lora.describe_lora()}, {trained:,} of {all_of_them:,} weights are trained"


def _adapt(transformer: Any, lora: LoraSettings, base: str, seed: int) -> None:
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    assert lora.lora_r
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out which layers are Conv1D
        torch.manual_seed(seed)
        config = LoraConfig(
            r=lora.lora_r,
            lora_alpha=lora.alpha_of_lora,
            target_modules=_targets(transformer, lora.lora_target or [ALL_LAYERS]),
            base_model_name_or_path=base,
            task_type=TaskType.FEATURE_EXTRACTION,
        )
        inject_adapter_in_model(config, transformer, _NAME)
    for _, layer in adapted_layers(transformer):
        layer.cast_input_dtype_enabled = False  # autocast decides


def _targets(transformer: nn.Module, names: Sequence[str]) -> list[str]:
    """Returns the full names of the layers with one of the names; the pooler is none, because nothing uses it."""
    from transformers.pytorch_utils import Conv1D

    layers = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    layers = [layer for layer in layers if layer.split(".")[0] != "pooler"]
    found: dict[str, None] = {}
    for name in names:
        of_name = [layer for layer in layers if name == ALL_LAYERS or f".{layer}".endswith(f".{name}")]
        if not of_name:
            last = ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))
            raise InputError(f"--lora_target {name}: no linear layer has this name; choose among {ALL_LAYERS}, {last}")
        found |= dict.fromkeys(of_name)
    return list(found)


def adapted_layers(transformer: nn.Module) -> list[tuple[str, Any]]:
    """Returns the adapted layers of a transformer by name; none if there are no adapters."""
    if not hasattr(transformer, "peft_config"):  # then peft may not be installed
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Puts ordinary layers with merged weights in the places of adapted layers, until the context ends.

    The merged weights are on the CPU. Afterwards the adapted layers are as before, to the bit.
    """
    adapted = [(name, layer, layer.get_base_layer()) for name, layer in adapted_layers(transformer)]
    frozen = [plain.weight for _, _, plain in adapted]
    try:
        for name, layer, plain in adapted:
            with torch.no_grad():
                total = (plain.weight + layer.get_delta_weight(_NAME)).cpu()
            plain.weight = nn.Parameter(total, requires_grad=False)
            transformer.set_submodule(name, plain)
        yield
    finally:
        for (name, layer, plain), weight in zip(adapted, frozen, strict=True):
            plain.weight = weight
            transformer.set_submodule(name, layer)


def _matrices(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Returns A and B of each adapted layer, by the name that peft gives them in a file."""
    return {
        f"{_PREFIX}{name}.lora_{matrix}.weight": getattr(layer, f"lora_{matrix}")[_NAME].weight
        for name, layer in adapted_layers(transformer)
        for matrix in "AB"
    }


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Writes the adapter of an encoder."""
    encoder.transformer.peft_config[_NAME].save_pretrained(str(folder))
    state = {name: matrix.detach().cpu() for name, matrix in _matrices(encoder.transformer).items()}
    save_file(state, folder / WEIGHTS_FILE, {"format": "pt"})


def load_adapter(encoder: Encoder, folder: Path) -> None:
    """Reads what `save_adapter` has written into the adapter of an encoder.

    Raises:
        InputError: the adapter has other layers or another rank.
    """
    own, saved = _matrices(encoder.transformer), load_file(folder / WEIGHTS_FILE)
    shapes = [{name: matrix.shape for name, matrix in state.items()} for state in (own, saved)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{folder}: has matrices for other layers; pass the --lora_target of the run that wrote it")
    with torch.no_grad():
        for name, matrix in own.items():
            matrix.copy_(saved[name])


def mix_adapters(folders: Sequence[Path], share: float, target: Path) -> None:
    """Writes an adapter that adds `share` times the mean of what some adapters of one run add.

    A sum of products B A is the product of the matrices side by side, so the rank grows with the number of adapters.
    """
    parts = [load_file(folder / WEIGHTS_FILE) for folder in folders]
    state = {}
    for name in parts[0]:
        of_parts = [part[name] for part in parts]
        is_a = name.endswith("lora_A.weight")
        state[name] = torch.cat(of_parts) if is_a else torch.cat(of_parts, dim=1) * (share / len(parts))
    config = json.loads((folders[0] / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {name: len(parts) * config[name] for name in ("r", "lora_alpha")}  # their ratio stays
    target.mkdir(parents=True)
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(state, target / WEIGHTS_FILE, {"format": "pt"})
