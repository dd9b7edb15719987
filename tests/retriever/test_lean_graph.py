"""A lean graph gives the bits of a whole one, from fewer bytes that wait for the backward pass."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rqa_ray.retriever.lean_graph import is_cast_of_weight, lean_graph
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.models import small_encoder
from tests.retriever.test_token_batches import token_rows

EPS = 1e-5


class Calls(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layer() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Linear(16, 16), nn.LayerNorm(16, EPS), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
    return nn.Sequential(*parts)


def run(model: nn.Module, context, bf16: bool = False) -> tuple[list[torch.Tensor], int, list[str]]:
    """Returns the gradients of all weights, the bytes of the graph and the operations of the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor):
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = 0 if is_cast_of_weight(tensor) else tensor.nbytes
        return tensor

    model.zero_grad()
    values = torch.linspace(-2, 2, 50 * 16).view(50, 16).sin()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), saved_tensors_hooks(note, lambda tensor: tensor):
        with context:
            result = model(values)
    with Calls() as calls:
        result.float().pow(2).sum().backward()
    return (
        [value.grad.clone() for value in model.parameters() if value.grad is not None],
        sum(kept.values()),
        calls.found,
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_gelu_and_layer_norm_are_computed_again_in_place_of_being_kept(bf16):
    whole, of_whole, _ = run(layer(), nullcontext(), bf16)
    lean, of_lean, _ = run(layer(), lean_graph(EPS), bf16)
    assert all(torch.equal(one, other) for one, other in zip(lean, whole, strict=True))
    size = 2 if bf16 else 4
    assert of_whole - of_lean == 50 * (64 + 16) * size


def test_a_value_that_several_layers_need_is_computed_once():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, *rest = nn.Linear(16, 16), nn.LayerNorm(16, EPS), *(nn.Linear(16, 16) for _ in range(3))
            self.parts = nn.ModuleList(rest)

        def forward(self, values):
            norm, *others = self.parts
            normed = norm(self.norm(values))
            return sum(other(normed) for other in others)

    for bf16 in (False, True):  # autocast casts for each layer
        calls = run(Attention(), lean_graph(EPS), bf16)[2]
        assert calls.count("native_layer_norm") == 1


def test_what_depends_on_weights_is_kept_where_weights_go_away():
    whole, partly, lean = (
        run(layer(), context)[1] for context in (nullcontext(), lean_graph(EPS, False), lean_graph(EPS))
    )
    assert whole - partly == 50 * 64 * 4 and partly - lean == 50 * 16 * 4
    assert run(layer(), lean_graph(None))[1] == partly


@pytest.mark.parametrize(
    ("name", "more"), [("bert", {}), ("distilbert", {}), ("modernbert", {}), ("qwen3", {}), ("t5", {"d_model": 32})]
)
@pytest.mark.parametrize("bf16", [False, True])
def test_encoders_have_the_same_gradients_to_the_bit_from_fewer_bytes(tmp_path, monkeypatch, name, more, bf16):
    encoder: Any = small_encoder(tmp_path, name, **more).train()
    token_batch = length_sorted_batches(token_rows([3, 9, 9, 17]), 100, 1, encoder.can_pack)[0][0]

    def found() -> tuple[list[torch.Tensor], int]:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            size = encoder.graph_bytes(token_batch)
            embeddings = encoder([token_batch], [0])
        (embeddings * torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)).sum().backward()
        return [value.grad for value in encoder.parameters() if value.grad is not None], size

    lean, of_lean = found()
    monkeypatch.setattr(encoder, "_lean_graph", nullcontext)
    whole, of_whole = found()
    assert all(torch.equal(one, other) for one, other in zip(lean, whole, strict=True))
    assert of_lean < of_whole
