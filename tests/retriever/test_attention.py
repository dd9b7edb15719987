"""Attention over packed texts compared with attention over each text alone."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rqa_ray.retriever import attention, cpu_attention
from rqa_ray.retriever.attention import packed_arguments, packed_attention
from rqa_ray.retriever.cpu_attention import Reach
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.retriever.test_token_batches import token_rows

LENGTHS = [2, 3, 9, 9, 40]
HEADS, DIMENSIONS = 4, 8
EVERYTHING = Reach()
REACHES = [
    pytest.param(EVERYTHING, id="all"),
    pytest.param(Reach(causal=True), id="causal"),
    pytest.param(Reach(window=5), id="window"),
    pytest.param(Reach(causal=True, window=5), id="causal window"),
]


@pytest.fixture
def token_batch():
    return length_sorted_batches(token_rows(LENGTHS), 1000, 0, packed=True)[0][0]


def heads(requires_grad: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, sum(LENGTHS), DIMENSIONS, generator=generator).requires_grad_() for _ in range(3)]


def one_by_one(query, key, value, reach: Reach = EVERYTHING):
    parts = []
    for text in zip(*(part.split(LENGTHS, dim=2) for part in (query, key, value)), strict=True):
        parts.append(nn.functional.scaled_dot_product_attention(*text, mask(text[0].shape[2], reach), scale=0.3))
    return torch.cat(parts, dim=2).transpose(1, 2)


def mask(length: int, reach: Reach) -> torch.Tensor:
    """Returns which token (row) attends to which, by the definition."""
    away = torch.arange(length)[:, None] - torch.arange(length)
    near = away.abs() < (reach.window or length)
    return near & (away >= 0) if reach.causal else near


def packed(token_batch, inputs, reach: Reach = EVERYTHING, dropout: float = 0.0):
    arguments = packed_arguments(token_batch, reach.causal)
    return packed_attention(
        nn.Module(), *inputs, dropout=dropout, scaling=0.3, sliding_window=reach.window, **arguments
    )[0]


@pytest.mark.parametrize("reach", REACHES)
def test_every_text_attends_to_itself_alone(token_batch, reach):
    inputs = heads()
    found, expected = packed(token_batch, inputs, reach), one_by_one(*inputs, reach)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    towards = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad(result, inputs, towards) for result in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class Calls(TorchDispatchMode):
    """Notes the arguments of every operation by the names in torch's declaration."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = [argument.name for argument in func._schema.arguments]
        self.found[func.name()] = dict(zip(names, args, strict=False)) | (kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_flash", [False, True])
def test_the_kernels_of_a_gpu_are_called_as_torch_declares_them(token_batch, use_flash, dtype, reach):
    inputs = [part.detach().to("meta", dtype).requires_grad_() for part in heads()]
    attend = functools.partial(attention._at_once, *inputs, token_batch.offsets.to("meta"), LENGTHS[-1])
    flash = use_flash and dtype == torch.bfloat16
    if reach.window and not flash:
        with pytest.raises(RuntimeError, match="no sliding window"):
            attend(reach, use_flash, 0.1, 0.3)
        return
    with Calls() as calls:
        found = attend(reach, use_flash, 0.1, 0.3)
        assert found.shape == (1, sum(LENGTHS), HEADS, DIMENSIONS) and found.dtype == dtype
        if flash:  # torch's declaration of the other kernel's backward pass is broken
            found.sum().backward()
            assert all(part.grad.shape == part.shape for part in inputs)
    if not flash:
        assert calls.found["aten::_efficient_attention_forward"]["custom_mask_type"] == int(reach.causal)
        return
    for name in ("aten::_flash_attention_forward", "aten::_flash_attention_backward"):
        call = calls.found[name]
        assert call["is_causal"] == reach.causal
        expected = (None, None) if not reach.window else (4, 0 if reach.causal else 4)
        assert (call.get("window_size_left"), call.get("window_size_right")) == expected


def assert_attends_as_in_fp32_on_a_cpu(token_batch, reach: Reach, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = heads()
    there = [part.detach().to(device, dtype).requires_grad_() for part in inputs]
    found, expected = packed(token_batch.to(device), there, reach), one_by_one(*inputs, reach)
    assert found.dtype == dtype
    assert (found.float().cpu() - expected).norm() < 0.01 * expected.norm()
    towards = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, there, towards.to(device, dtype))
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs, towards), strict=True):
        assert (one.float().cpu() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("reach", REACHES)
def test_in_bf16_every_text_attends_to_itself_alone_as_in_fp32(token_batch, reach):
    assert_attends_as_in_fp32_on_a_cpu(token_batch, reach, torch.bfloat16)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("amx", [False, True])
def test_in_bf16_evaluation_attends_as_in_fp32_with_and_without_amx(token_batch, amx, reach, monkeypatch):
    monkeypatch.setattr(cpu_attention, "has_amx", lambda: amx)
    inputs = [part.detach() for part in heads()]
    with torch.inference_mode():
        found = packed(token_batch, [part.bfloat16() for part in inputs], reach)
    expected = one_by_one(*inputs, reach)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


def test_dropout_in_attention_keeps_the_expectation(token_batch):
    inputs = [part.detach() for part in heads()]
    torch.manual_seed(0)
    mean = sum(packed(token_batch, inputs, dropout=0.2) for _ in range(400)) / 400
    assert (mean - one_by_one(*inputs)).abs().mean() < 0.02
