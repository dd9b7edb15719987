"""Gradient caching compared with the plain pass: the loss and every parameter's gradient, with dropout."""

import numpy as np
import pytest
import torch

from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.step import forward_backward
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.retriever.test_losses import contrastive_loss

NUM_QUESTIONS, NUM_PASSAGES, LENGTH = 5, 8, 10
# 13 rows of 10 tokens: one a token batch; 3 (does not divide); 5; all; more than there are.
MAX_TOKENS = [1, 30, 59, 130, 100_000]
LAYOUTS = [pytest.param(False, id="padded"), pytest.param(True, id="packed")]


@pytest.fixture
def encoder(tiny_model) -> Encoder:
    return load_encoder(tiny_model, EncoderSettings())


def step(
    encoder, max_tokens, gradient_cache, packed=False, *, seed=0, backward=torch.Tensor.backward, accumulate=False
):
    """Returns loss, gradients by parameter name, and number of token batches of one batch, on the encoder's device."""
    device = next(encoder.parameters()).device
    generator = np.random.default_rng(3)
    rows = [generator.integers(5, 140, LENGTH) for _ in range(NUM_QUESTIONS + NUM_PASSAGES)]
    token_batches, order = length_sorted_batches(rows, max_tokens, 0, packed)
    token_batches, order = [token_batch.to(device) for token_batch in token_batches], order.to(device)
    # two questions of one passage, and a negative that is a gold
    ids = torch.tensor([1, 2, 3, 1, 4, 5, 2, 6], device=device)

    def loss_of(embeddings):
        questions, passages = embeddings[order].split([NUM_QUESTIONS, NUM_PASSAGES])
        is_passage = torch.ones_like(ids, dtype=torch.bool)
        return contrastive_loss(questions, passages, ids, is_passage, ids[:NUM_QUESTIONS, None], 0.05, NUM_QUESTIONS)

    if not accumulate:
        encoder.zero_grad()
    seeds = [seed + number for number in range(len(token_batches))]
    loss = forward_backward(encoder, token_batches, seeds, loss_of, backward, gradient_cache)
    gradients = {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}
    return loss, gradients, len(token_batches)


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Returns the largest relative difference of all gradients together and of each one that is more than rounding.

    It compares norms, because the gradients of key biases are zero in theory.
    """
    assert found.keys() == expected.keys() and len(expected) > 30
    both = [torch.cat([part[name].flatten() for name in expected]) for part in (found, expected)]
    norm = both[1].norm()
    counting = [name for name, gradient in expected.items() if gradient.norm() > 1e-4 * norm]
    assert norm > 0.1 and len(counting) > 25
    differences = [float((found[name] - expected[name]).norm() / expected[name].norm()) for name in counting]
    return max(float((both[0] - both[1]).norm() / norm), *differences)


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
def test_cached_equals_plain_with_the_same_dropout_masks(encoder, max_tokens, packed):
    assert_cached_equals_plain(encoder, max_tokens, packed)


def assert_cached_equals_plain(encoder, max_tokens, packed):
    """Checks that caching any share gives the same loss and gradients with dropout, whose masks it repeats.

    On the encoder's device.
    """
    plain_loss, plain_gradients, num_token_batches = step(encoder, max_tokens, 0.0, packed)
    other_loss, _, _ = step(encoder, max_tokens, 0.0, packed, seed=1000)
    assert num_token_batches == {1: 13, 30: 5, 59: 3}.get(max_tokens, 1)
    assert abs(other_loss - plain_loss) > 1e-3  # dropout is on
    assert plain_loss > 0.1
    for share in (0.3, 1.0):
        loss, gradients, _ = step(encoder, max_tokens, share, packed)
        torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
        assert relative_difference(gradients, plain_gradients) < 1e-5


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
def test_without_dropout_neither_the_token_batches_nor_their_layout_change_the_result(tiny_model, max_tokens, packed):
    encoder = load_encoder(tiny_model, EncoderSettings(), dropout=0.0)
    loss, gradients, _ = step(encoder, max_tokens, 1.0, packed)
    plain_loss, plain_gradients, num_token_batches = step(encoder, 100_000, gradient_cache=0.0)
    assert num_token_batches == 1
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-5)
    assert relative_difference(gradients, plain_gradients) < 1e-4


def test_cached_equals_plain_in_bf16(encoder):
    def in_bf16():
        # As accelerate wraps the forward for the Trainer.
        encoder.forward = torch.autocast("cpu", torch.bfloat16)(type(encoder).forward.__get__(encoder))
        return encoder

    fp32_loss, _, _ = step(encoder, 30, gradient_cache=0.0)
    loss, gradients, _ = step(in_bf16(), 30, gradient_cache=1.0)
    plain_loss, plain_gradients, _ = step(in_bf16(), 30, gradient_cache=0.0)
    assert fp32_loss != plain_loss  # bf16 is on
    torch.testing.assert_close(loss, plain_loss, rtol=1e-3, atol=1e-3)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert relative_difference(gradients, plain_gradients) < 0.02


@pytest.mark.parametrize("gradient_cache", [0.0, 0.3, 1.0])
def test_the_loss_comes_back_detached_and_gradients_add_up(encoder, gradient_cache):
    loss, once, _ = step(encoder, 30, gradient_cache)
    assert not loss.requires_grad and loss.ndim == 0
    _, twice, _ = step(encoder, 30, gradient_cache, accumulate=True)
    assert relative_difference(twice, {name: 2 * gradient for name, gradient in once.items()}) < 1e-5


@pytest.mark.parametrize("gradient_cache", [0.0, 0.3, 1.0])
def test_the_scale_that_backward_puts_on_the_loss_reaches_the_gradients_and_not_the_loss(encoder, gradient_cache):
    loss, plain, _ = step(encoder, 30, gradient_cache)
    scaled_loss, scaled, _ = step(encoder, 30, gradient_cache, backward=lambda loss: (loss * 1024).backward())
    assert scaled_loss == loss
    assert relative_difference(scaled, {name: 1024 * gradient for name, gradient in plain.items()}) < 1e-5


def test_memory_holds_the_graphs_that_are_not_cached_and_one_of_those_that_are(encoder):
    def most_saved_bytes(gradient_cache: float) -> int:
        held, most = 0, 0

        class Saved:
            def __init__(self, tensor):
                nonlocal held, most
                self.tensor = tensor
                held += tensor.nbytes
                most = max(most, held)

            def __del__(self):
                nonlocal held
                held -= self.tensor.nbytes

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            step(encoder, 10, gradient_cache)
        return most

    whole = most_saved_bytes(0.0)
    assert most_saved_bytes(1.0) < whole / 8  # 13 token batches
    assert most_saved_bytes(0.5) == pytest.approx(whole * 6 / 13, rel=0.1)
