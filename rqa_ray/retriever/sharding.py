"""Cuts an encoder into shards, one for each rank, with torch's FSDP2 (`fully_shard`): for a model that fits no device.

A rank keeps its shard of every parameter, of the gradient and of the optimizer's moments. A layer is whole while it
computes: a rank gathers the layer before its forward pass and its backward pass, and forgets the layer afterwards. So
all ranks have to make the same forward passes in the same order (`in_step`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches


def shard(encoder: Encoder, device: torch.device, bf16: bool = False) -> None:
    """Cuts the parameters of an encoder on the CPU into shards, and moves this rank's shard to the device.

    With `bf16`, the layers are gathered and computed in bf16, in evaluations too; the shards stay in fp32. The device
    holds no more than the shards and one whole layer. All ranks have to call this function together.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP takes the current device
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    # What lies between layers, such as a last norm, stays in fp32, and so takes the outputs of layers in fp32.
    in_bf16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for layer in _layers(encoder.transformer):
        fully_shard(layer, mesh=mesh, mp_policy=in_bf16 if bf16 else MixedPrecisionPolicy())
    vectors = encoder.transformer.get_input_embeddings()
    owners = [value for _, value in encoder.named_parameters(remove_duplicate=False) if value is vectors.weight]
    if len(owners) == 1:  # a parameter of two modules, as in T5, has to stay with both
        fully_shard(vectors, mesh=mesh)
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(encoder, "embed")
    encoder.register_load_state_dict_pre_hook(_cut)
    encoder.is_sharded, encoder.interrupts.in_step = True, device
    # Transformers' Trainer asks for this name. Where it is true, the Trainer does not wrap the model in DDP.
    encoder.is_distributed_loading_by_transformers = True  # type: ignore[assignment]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers of a transformer: the items of its outermost lists of modules."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _layers(child)
            continue
        for item in child:
            if isinstance(item, (nn.ModuleList, nn.ModuleDict)):  # only modules with a forward pass can be shards
                yield from _layers(item)
            elif any(True for _ in item.parameters()):
                yield item


def _cut(encoder: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Cuts the whole tensors that are about to be loaded into a sharded encoder."""
    for name, own in encoder.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = shard_of(state[name], own)


def shard_of(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Returns this rank's shard of a tensor that all ranks have, cut like a parameter; no rank sends anything."""
    if not isinstance(parameter, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def whole(encoder: Encoder, rewrites: bool = False) -> Iterator[None]:
    """Puts whole parameters on the CPU in the places of the shards until the context ends; only rank 0 gets them.

    With `rewrites`, all ranks get them, and the shards are afterwards cut from what the parameters have become. An
    encoder without shards stays as it is. All ranks have to enter the context together.
    """
    if not encoder.is_sharded:
        yield
        return
    encoder.state_dict()  # FSDP puts shards back where a forward pass that was given up has left whole parameters
    owners: list[tuple[nn.Module, str, Any]] = [
        (module, name, own) for module in encoder.modules() for name, own in module._parameters.items()
    ]
    wholes = {}
    for own in dict.fromkeys(own for _, _, own in owners if own is not None):
        gathered = own.detach().full_tensor()
        if rewrites or distributed.rank() == 0:
            wholes[own] = nn.Parameter(gathered.cpu(), own.requires_grad)
    try:
        for module, name, own in owners:
            module._parameters[name] = wholes.get(own, own)
        yield
        changed = encoder.state_dict() if rewrites else {}
    finally:
        for module, name, own in owners:
            module._parameters[name] = own
    if rewrites:
        encoder.load_state_dict(changed)


def whole_weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Returns a copy of an encoder's whole tensors by name, on the CPU. All ranks have to call it together."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu().clone()
        for name, value in encoder.state_dict().items()
    }


def in_step(
    token_batches: list[TokenBatch], pad_id: int, packed: bool, device: torch.device | str = "cpu"
) -> list[TokenBatch]:
    """Adds token batches of one token, until this rank has as many as the rank with the most.

    All ranks have to call it together. What the added token batches give has to be ignored.
    """
    most = int(distributed.gather(torch.tensor([len(token_batches)], device=device)).max())
    idle, _ = length_sorted_batches([np.array([pad_id])], 1, pad_id, packed)
    return token_batches + idle * (most - len(token_batches))
