"""Says which runs can share the weights among the workers (`--fsdp`), and refuses the others before they start."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.settings import TrainSettings

OLDEST_TRANSFORMERS = (5, 24)  # whose Trainer takes a model that is shared already
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")  # each treats every number of a weight alone


def check_fsdp(settings: TrainSettings, training: dict[str, Any]) -> None:
    """Raises InputError for arguments that do not go together with `--fsdp`; leaves out a `--fsdp` that is off."""
    if str(training.get("fsdp") or "false").lower() == "false":
        training.pop("fsdp", None)
        return
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) < OLDEST_TRANSFORMERS:
        raise InputError(f"--fsdp: needs transformers 5.24, and {installed} is installed; pip install -U transformers")
    apart = {
        "--fp16": (training.get("fp16"), "the scale of the loss is not shared; choose --bf16"),
        "--torch_compile": (training.get("torch_compile"), "they do not work together; leave out one of them"),
        "--async_eval": (settings.async_eval, "it would load the whole model on one device; leave out --async_eval"),
    }
    for flag, (is_given, why) in apart.items():
        if is_given:
            raise InputError(f"--fsdp and {flag}: {why}")
    optimizer = str(training.get("optim") or OPTIMIZERS[0])
    if optimizer not in OPTIMIZERS:
        raise InputError(f"--optim {optimizer}: --fsdp works with {', '.join(OPTIMIZERS[:-1])} and {OPTIMIZERS[-1]}")


def check_num_workers(training: dict[str, Any], fewest: int) -> None:
    """Raises InputError if a run with `--fsdp` may have a single worker."""
    if training.get("fsdp") and fewest < 2:
        raise InputError(
            "--fsdp: shares the weights among workers, and there may be one; give --num_workers 2 or more"
        )
