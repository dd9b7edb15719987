"""Keeps fewer activations for the backward pass: those that cost little are computed again there.

Autograd keeps what GELU gives, because the next linear layer needs it in its backward pass. It also keeps what GELU
takes, because GELU needs that. What GELU gives is four times as wide as a token's vector, and is computed again from
what GELU takes in a hundredth of the time of a step. The same holds for layer norms, products and casts. This is
selective recomputation (Korthikanti et al. 2022), found in the graph, so it knows nothing about the type of model.

The same operation on the same numbers gives the same bits, so losses and gradients do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

# How the first output of a node of the graph follows from what the node keeps.
_COMPUTE: dict[str, Callable[[Any], torch.Tensor]] = {
    "GeluBackward0": lambda node: nn.functional.gelu(node._saved_self, approximate=node._saved_approximate),
    "SiluBackward0": lambda node: nn.functional.silu(node._saved_self),
    "MulBackward0": lambda node: node._saved_self * node._saved_other,
}
_LAYER_NORM, _CAST = "NativeLayerNormBackward0", "ToCopyBackward0"


class _Again:
    """A value that is computed again, and held from its first use in the backward pass to its last."""

    def __init__(self, compute: Callable[[], torch.Tensor], dtype: torch.dtype) -> None:
        self.compute = compute
        self.dtype = dtype
        self.uses = 0
        self.value: torch.Tensor | None = None

    def take(self) -> torch.Tensor:
        value = self.compute().to(self.dtype) if self.value is None else self.value
        self.uses -= 1
        self.value = value if self.uses > 0 else None
        return value


@contextmanager
def lean_graph(norm_eps: float | None, weights_stay: bool = True) -> Iterator[None]:
    """Lets forward passes in a context keep fewer activations, where they keep a graph.

    Args:
        norm_eps: what the layer norms add to the variance; with None, their outputs are kept.
        weights_stay: whether all weights are there in the backward pass; else what depends on weights is kept.
    """
    # The hooks of an outer context go on: of a measurement, say.
    keep, give = torch._C._autograd._top_saved_tensors_default_hooks(True) or (_same, _same)
    found: dict[tuple[Any, torch.dtype], _Again | None] = {}

    def pack(tensor: torch.Tensor) -> Any:
        whole = tensor if tensor._base is None else tensor._base
        node: Any = whole.grad_fn if whole.output_nr == 0 else None
        if node is not None and node.name() == _CAST:  # autocast casts the input of each linear layer by itself
            node = node.next_functions[0][0]
        if node is None:
            return keep(tensor)
        key = node, whole.dtype
        if key not in found:
            compute = _recipe(node, norm_eps, weights_stay)
            found[key] = compute and _Again(compute, whole.dtype)
        value = found[key]
        if value is None:
            return keep(tensor)
        value.uses += 1
        return value, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> torch.Tensor:
        if not isinstance(kept, tuple) or not isinstance(kept[0], _Again):
            return give(kept)
        value, *layout = kept
        with torch.no_grad():
            return value.take().as_strided(*layout)

    with saved_tensors_hooks(pack, unpack):
        yield
    found.clear()


def is_cast_of_weight(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is the copy of a trained weight in another precision."""
    node: Any = tensor.grad_fn
    return node is not None and node.name() == _CAST and _is_weight(node.next_functions[0][0])


def _is_weight(node: Any) -> bool:
    return node is not None and node.name().endswith("AccumulateGrad")


def _recipe(node: Any, norm_eps: float | None, weights_stay: bool) -> Callable[[], torch.Tensor] | None:
    """Returns a function that computes the first output of a node again; None if the output has to be kept."""
    name, sources = node.name(), node.next_functions
    if name == _LAYER_NORM:
        return (lambda: _layer_norm(node, norm_eps)) if norm_eps is not None and weights_stay else None
    # A product keeps a factor only if the other one needs a gradient.
    if name not in _COMPUTE or any(source is None for source, _ in sources):
        return None
    if not weights_stay and any(_is_weight(source) for source, _ in sources):
        return None
    return lambda: _COMPUTE[name](node)


def _layer_norm(node: Any, eps: float) -> torch.Tensor:
    shape = node._saved_normalized_shape
    return nn.functional.layer_norm(node._saved_input, shape, node._saved_weight, node._saved_bias, eps)


def _same(value: Any) -> Any:
    return value
