"""The trainer of an encoder that is cut into shards (`retriever/sharding.py`).

Its checkpoints are those of `ContrastiveTrainer`: the whole model, and the whole state of the optimizer. So a run goes
on with any number of workers, with shards or without.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from rqa_ray.data.batches import RankBatch
from rqa_ray.retriever import distributed
from rqa_ray.retriever.adapters import adapted_layers
from rqa_ray.retriever.sharding import in_step, shard_of, whole
from rqa_ray.training.trainer import ContrastiveTrainer


class ShardedTrainer(ContrastiveTrainer):
    """Trains a sharded encoder. All ranks make equally many forward passes, and save and load together."""

    def training_step(
        self, model: nn.Module, inputs: RankBatch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        # The loss does not see the rows of the added token batches, so these rows get gradients of zero.
        plan, pad_id = self.batches.plan, self.batches.pad_id
        inputs.token_batches = in_step(inputs.token_batches, pad_id, plan.packed, self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager:
        """Defers nothing where gradients accumulate, because whole gradients may not fit."""
        return nullcontext()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with whole(self.model):
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Weights are cut when they are loaded. An adapter is merged with its layers, so all have to be whole.
        is_adapted = bool(adapted_layers(self.model.transformer))
        with whole(self.model, rewrites=True) if is_adapted else nullcontext():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = whole_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint:
            # The file stays on the disk (`mmap`), because each rank needs only its shard.
            state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True, mmap=True)
            load_whole_state(self.optimizer, state)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer with whole tensors, on the CPU of rank 0; the other ranks get no tensors.

    All ranks have to call it together.
    """
    state = optimizer.state_dict()
    for number, values in state["state"].items():
        gathered = {}
        for name, value in values.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if distributed.rank() == 0:
                gathered[name] = full.cpu() if torch.is_tensor(full) else full
        state["state"][number] = gathered
    return state


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `whole_state` has returned on rank 0; each rank takes its shards."""
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(number, {}).items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state["state"][number][name] = shard_of(value, parameter)
    optimizer.load_state_dict(state)
