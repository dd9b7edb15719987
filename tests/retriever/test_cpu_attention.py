"""Attention on CPUs compared with its formula, whose gradient autograd computes."""

import pytest
import torch

from rqa_ray.retriever import cpu_attention
from rqa_ray.retriever.cpu_attention import Reach, attend
from rqa_ray.retriever.dropout import apply_mask, keep_mask, new_seed
from tests.retriever.test_attention import DIMENSIONS, REACHES, mask

TEXTS, LENGTH = 5, 22


@pytest.mark.parametrize("score", [-300.0, -90.0, 0.0, 75.0, 90.0, 300.0])
def test_in_bf16_scores_may_be_of_any_size(score):
    length = 40
    query, key = torch.zeros(2, length, 1, DIMENSIONS, dtype=torch.bfloat16)
    query[..., 0], key[..., 0] = score, 1
    value = torch.randn(length, 1, DIMENSIONS).bfloat16().requires_grad_()
    found = attend(query, key, value, [length], Reach(), 0.0, 1.0)  # all scores are equal
    expected = value.float().mean(0, keepdim=True).expand_as(found)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.005)
    (gradient,) = torch.autograd.grad(found.sum(), value)
    torch.testing.assert_close(gradient, torch.ones_like(gradient), rtol=0.01, atol=0)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_result_and_its_gradient_are_those_of_the_formula_with_the_probabilities_masked(
    reach, dropout, monkeypatch
):
    monkeypatch.setattr(cpu_attention, "PROBABILITIES_OF_A_THREAD", 2 * 4 * LENGTH**2)
    query, key, value = (torch.randn(TEXTS * LENGTH, 4, DIMENSIONS, requires_grad=True) for _ in range(3))
    torch.manual_seed(3)
    found = attend(query, key, value, [LENGTH] * TEXTS, reach, dropout, 0.3)  # two texts at a time
    torch.manual_seed(3)
    q, k, v = (part.unflatten(0, (TEXTS, LENGTH)).transpose(1, 2) for part in (query, key, value))
    shares = (q @ k.transpose(2, 3) * 0.3).masked_fill(~mask(LENGTH, reach), -torch.inf).softmax(3)
    if dropout:
        seed = new_seed()
        parts = [keep_mask(part.shape, dropout, (seed, number)) for number, part in enumerate(shares.split(2))]
        shares = shares * apply_mask(torch.ones_like(shares), torch.cat(parts), dropout)
    expected = (shares @ v).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    towards = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad(result, (query, key, value), towards) for result in (found, expected)), strict=True
    ):
        assert other.norm() > 1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, torch.float32), (0.1, torch.float32), (0.1, torch.bfloat16)])
def test_the_graph_has_no_probabilities_and_the_result_once(dropout, dtype):
    query, key, value = (torch.randn(200, 4, DIMENSIONS).to(dtype).requires_grad_() for _ in range(3))
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attended = attend(query, key, value, [100, 100], Reach(), dropout, 0.3)
        attended.flatten(1) @ torch.ones(4 * DIMENSIONS, 1, dtype=dtype, requires_grad=True)
    probabilities = 2 * 4 * 100 * 100
    of_rows = 200 * 4 * 4  # a factor or a sum for each row of probabilities
    assert sum(kept.values()) <= 4 * query.nbytes + bool(dropout) * probabilities / 8 + of_rows + 4 * DIMENSIONS * 4
