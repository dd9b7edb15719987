"""Attention over packed texts compared with attention over each text alone."""

import functools

import pytest
import torch
from torch import nn

from rqa_ray.retriever import attention
from rqa_ray.retriever.attention import bounds, packed_attention
from rqa_ray.retriever.dropout import apply_mask, keep_mask
from rqa_ray.retriever.model_types import MODEL_TYPES
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.models import small_encoder
from tests.retriever.test_token_batches import token_rows

LENGTHS = [2, 3, 9, 9, 40]
HEADS, DIMENSIONS = 4, 8
PACKED_TYPES = [name for name, kind in MODEL_TYPES.items() if kind.packed]


@pytest.fixture
def token_batch():
    return length_sorted_batches(token_rows(LENGTHS), 1000, 0, packed=True)[0][0]


def heads(requires_grad: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, sum(LENGTHS), DIMENSIONS, generator=generator).requires_grad_() for _ in range(3)]


def one_by_one(query, key, value):
    texts = zip(*(part.split(LENGTHS, dim=2) for part in (query, key, value)), strict=True)
    parts = [nn.functional.scaled_dot_product_attention(*text, scale=0.3) for text in texts]
    return torch.cat(parts, dim=2).transpose(1, 2)


def test_every_text_attends_to_itself_alone(token_batch):
    inputs = heads()
    found, _ = packed_attention(nn.Module(), *inputs, None, scaling=0.3, **bounds(token_batch))
    expected = one_by_one(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    towards = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad(result, inputs, towards) for result in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_flash", [False, True])
def test_the_kernels_of_a_gpu_are_called_as_torch_declares_them(token_batch, use_flash, dtype):
    inputs = [part.detach().to("meta", dtype).requires_grad_() for part in heads()]
    found = attention._at_once(*inputs, token_batch.offsets.to("meta"), token_batch.lengths[-1], use_flash, 0.1, 0.3)
    assert found.shape == (1, sum(LENGTHS), HEADS, DIMENSIONS) and found.dtype == dtype
    if use_flash and dtype == torch.bfloat16:  # torch's declaration of the other kernel's backward pass is broken
        found.sum().backward()
        assert all(part.grad.shape == part.shape for part in inputs)


def test_in_bf16_every_text_attends_to_itself_alone_as_in_fp32(token_batch):
    inputs = heads()
    halves = [part.detach().bfloat16().requires_grad_() for part in inputs]
    found, _ = packed_attention(nn.Module(), *halves, None, scaling=0.3, **bounds(token_batch))
    expected = one_by_one(*inputs)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()
    towards = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, halves, towards.bfloat16())
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs, towards), strict=True):
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("amx", [False, True])
def test_in_bf16_evaluation_attends_as_in_fp32_with_and_without_amx(token_batch, amx, monkeypatch):
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    inputs = [part.detach() for part in heads()]
    with torch.inference_mode():
        halves = [part.bfloat16() for part in inputs]
        found, _ = packed_attention(nn.Module(), *halves, None, scaling=0.3, **bounds(token_batch))
    expected = one_by_one(*inputs)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("score", [-300.0, -90.0, 0.0, 75.0, 90.0, 300.0])
def test_in_bf16_scores_may_be_of_any_size(score):
    length = 40
    query, key = torch.zeros(2, 1, 1, length, DIMENSIONS, dtype=torch.bfloat16)
    query[..., 0], key[..., 0] = score, 1
    value = torch.randn(1, 1, length, DIMENSIONS).bfloat16().requires_grad_()
    found = attention._Attention.apply(query, key, value, 0.0, 1.0)  # all scores are equal
    expected = value.float().mean(2, keepdim=True).expand_as(found)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.005)
    (gradient,) = torch.autograd.grad(found.sum(), value)
    torch.testing.assert_close(gradient, torch.ones_like(gradient), rtol=0.01, atol=0)


def test_with_dropout_the_probabilities_are_masked_and_the_gradient_is_autograds():
    query, key, value = (part[:, :, -40:].detach().requires_grad_() for part in heads())
    torch.manual_seed(3)
    found = attention._Attention.apply(query, key, value, 0.25, 0.3)
    torch.manual_seed(3)
    shares = (query @ key.transpose(2, 3) * 0.3).softmax(3)
    kept = keep_mask(shares.shape, 0.25)
    expected = apply_mask_with_graph(shares, kept) @ value
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    towards = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad(result, (query, key, value), towards) for result in (found, expected)), strict=True
    ):
        assert other.norm() > 1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def apply_mask_with_graph(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return values * apply_mask(torch.ones_like(values), kept, 0.25)


def test_dropout_in_attention_keeps_the_expectation(token_batch):
    inputs = [part.detach() for part in heads()]
    torch.manual_seed(0)
    one = functools.partial(packed_attention, nn.Module(), *inputs, None, 0.2, 0.3, **bounds(token_batch))
    mean = sum(one()[0] for _ in range(400)) / 400
    assert (mean - one_by_one(*inputs)).abs().mean() < 0.02


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_a_model_gives_packed_texts_the_embeddings_and_gradients_of_padded_ones(model_type, tmp_path):
    encoder = small_encoder(tmp_path, model_type).eval()
    assert encoder.can_pack
    rows = token_rows([3, 9, 9, 40, 2, 400])
    found = []
    for packed in (False, True):
        token_batches, order = length_sorted_batches(rows, 10_000, encoder.transformer.config.pad_token_id, packed)
        encoder.zero_grad()
        embeddings = encoder(token_batches)[order]
        (embeddings * torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)).sum().backward()
        gradients = [value.grad.flatten() for value in encoder.parameters() if value.grad is not None]
        found.append((embeddings.detach(), torch.cat(gradients)))
    assert found[0][0].std(0).mean() > 0.01 and found[0][1].norm() > 0.1
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    assert (found[1][1] - found[0][1]).norm() < 1e-5 * found[0][1].norm()


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_a_model_takes_packed_texts_in_bf16_with_dropout_in_attention(model_type, tmp_path):
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    encoder = small_encoder(tmp_path, model_type, **dict.fromkeys(names, 0.1)).train()
    token_batches, _ = length_sorted_batches(token_rows([3, 9, 9, 40]), 10_000, 1, packed=True)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder(token_batches, [1])
    embeddings[:, 0].sum().backward()
    gradients = [value.grad for value in encoder.parameters() if value.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients) and len(gradients) >= 20


@pytest.mark.parametrize(("model_type", "more"), [("mpnet", {}), ("modernbert", {}), ("bert", {"is_decoder": True})])
def test_a_model_with_a_bias_a_window_or_causal_attention_is_padded(model_type, more, tmp_path):
    assert not small_encoder(tmp_path, model_type, **more).can_pack
