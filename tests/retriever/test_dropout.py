"""Dropout with cheap masks: shares, expectations, gradients, and the same masks again from torch's random state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rqa_ray.retriever.dropout import FastDropout, apply_mask, keep_mask, pack_mask, replace_dropout, unpack_mask


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_keeps_the_expectation(probability):
    torch.manual_seed(0)
    kept = keep_mask(torch.Size([1000, 1000]), probability)
    assert kept.unique().tolist() == [0, 1]
    assert float((kept == 0).float().mean()) == pytest.approx(probability, abs=5 * 0.5 / 1000)
    values = apply_mask(torch.ones(1000, 1000), kept, probability)
    assert float(values.mean()) == pytest.approx(1, abs=0.02)
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-3)


def test_neighbours_in_a_mask_are_independent():
    torch.manual_seed(0)
    dropped = 1 - keep_mask(torch.Size([2_000_000]), 0.1).double()
    for distance in (1, 2, 3, 4, 1000):
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert both == pytest.approx(0.01, abs=0.0005)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_a_mask_has_any_shape_and_comes_back_from_its_bits(shape):
    kept = keep_mask(torch.Size(shape), 0.5)
    assert kept.shape == torch.Size(shape)
    assert torch.equal(unpack_mask(pack_mask(kept), kept.shape), kept)


def test_torchs_random_state_decides_on_the_mask():
    shape = torch.Size([50, 50])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = keep_mask(shape, 0.5), keep_mask(shape, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(keep_mask(shape, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_passes_where_the_value_did(dtype):
    values = torch.randn(30, 40).to(dtype).requires_grad_()  # drawn in bf16, some would be 0
    dropped = FastDropout(0.3)(values)
    dropped.sum().backward()
    assert dropped.dtype == dtype and 0.5 < float((dropped != 0).float().mean()) < 0.9
    torch.testing.assert_close(values.grad, (dropped / values).detach(), rtol=0.02, atol=0)


def test_without_training_or_probability_the_values_pass_unchanged():
    values = torch.randn(5)
    assert torch.equal(FastDropout(0.5).eval()(values), values)
    assert torch.equal(FastDropout(0.0)(values), values)


def test_all_dropout_of_a_module_is_replaced_and_keeps_its_probability():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2)), nn.Dropout(0.4), nn.AlphaDropout(0.1))
    replace_dropout(module)
    assert [type(part) for part in (module[1][0], module[2], module[3])] == [FastDropout, FastDropout, nn.AlphaDropout]
    assert (module[1][0].p, module[2].p) == (0.2, 0.4)
