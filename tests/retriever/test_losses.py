"""The loss compared with loops over questions and columns, in float64."""

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.retriever.candidates import gather_candidates
from rqa_ray.retriever.losses import InBatchContrastive, mean_over_global_batch


def contrastive_loss(questions, passages, passage_ids, is_passage, gold_ids, temperature, global_batch_size):
    """Returns the mean over the global batch, as the trainer computes it."""
    candidates = gather_candidates(passages, passage_ids, is_passage, gold_ids)
    return mean_over_global_batch(InBatchContrastive(temperature)(questions, candidates), global_batch_size)


@st.composite
def batches(draw):
    """Arguments of the loss: passages repeat, questions have several golds, and the last rows are padding."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_questions, num_negatives, num_padding = (
        draw(st.integers(1, 6)),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 3)),
    )
    num_passages = num_questions + num_negatives + num_padding
    num_distinct, dimension = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    identities = torch.randint(-(2**62), 2**62, (num_distinct,), generator=generator)  # hashes, of either sign
    passage_ids = identities[torch.randint(num_distinct, (num_passages,), generator=generator)]
    passage_ids[num_passages - num_padding :] = 0
    others = identities[torch.randint(num_distinct, (num_questions, draw(st.integers(0, 3))), generator=generator)]
    return {
        "questions": torch.randn(num_questions, dimension, generator=generator),
        "passages": torch.randn(num_passages, dimension, generator=generator),
        "passage_ids": passage_ids,
        "is_passage": torch.arange(num_passages) < num_passages - num_padding,
        "gold_ids": torch.cat([passage_ids[:num_questions, None], others], dim=1),
        "temperature": draw(st.sampled_from([0.05, 0.5, 1.0])),
        "global_batch_size": num_questions * draw(st.integers(1, 2)),
    }


def brute_force(questions, passages, passage_ids, is_passage, gold_ids, temperature, global_batch_size):
    losses = []
    for own, question in enumerate(questions):
        logits = []
        for column, passage in enumerate(passages):
            other_gold = int(passage_ids[column]) in set(gold_ids[own].tolist()) and column != own
            if is_passage[column] and not other_gold:
                logits.append((question * passage).sum() / temperature)
        own_logit = (question * passages[own]).sum() / temperature
        losses.append(torch.stack(logits).logsumexp(0) - own_logit)
    return torch.stack(losses).sum() / global_batch_size


def gradients(function, batch, dtype):
    """Returns the loss and its gradient with respect to questions and passages."""
    leaves = {name: batch[name].to(dtype).requires_grad_() for name in ("questions", "passages")}
    loss = function(**batch | leaves)
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


@given(batches(), st.sampled_from([1, 20, 2**24]))
def test_loss_and_gradient_are_those_of_a_loop_over_questions_and_columns_in_blocks_of_any_size(batch, max_scores):
    with mock.patch("rqa_ray.retriever.losses.MAX_SCORES", max_scores):
        found = gradients(contrastive_loss, batch, torch.float32)
    expected = gradients(brute_force, batch, torch.float64)
    for value, reference in zip(found, expected, strict=True):
        # A gradient is a difference of numbers of the size of the passages over the temperature.
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-4)


def test_the_loss_of_distinct_passages_is_plain_cross_entropy_and_trains_both_sides():
    generator = torch.Generator().manual_seed(0)
    questions, passages = torch.randn(2, 5, 8, generator=generator)
    ids = torch.arange(5)
    batch = {
        "questions": questions,
        "passages": passages,
        "passage_ids": ids,
        "is_passage": torch.ones(5, dtype=torch.bool),
        "gold_ids": ids[:, None],
        "temperature": 0.1,
        "global_batch_size": 5,
    }
    loss, *found = gradients(contrastive_loss, batch, torch.float32)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(questions @ passages.T / 0.1, ids))
    assert all(gradient.norm() > 0.1 for gradient in found)


def test_a_question_that_meets_only_its_own_golds_has_loss_and_gradient_zero():
    batch = {
        "questions": torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        "passages": torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]),
        "passage_ids": torch.tensor([7, 8, 0]),
        "is_passage": torch.tensor([True, True, False]),
        "gold_ids": torch.tensor([[7, 8], [7, 8]]),
        "temperature": 0.05,
        "global_batch_size": 2,
    }
    loss, *found = gradients(contrastive_loss, batch, torch.float32)
    assert loss == 0
    assert not any(gradient.any() for gradient in found)


def test_padding_rows_change_nothing_whatever_is_in_them():
    generator = torch.Generator().manual_seed(0)
    questions, passages = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    common: dict[str, Any] = {
        "questions": questions,
        "gold_ids": torch.arange(3)[:, None],
        "temperature": 0.1,
        "global_batch_size": 3,
    }
    without = contrastive_loss(
        passages=passages[:4], passage_ids=torch.arange(4), is_passage=torch.ones(4, dtype=torch.bool), **common
    )
    padded = contrastive_loss(
        passages=passages, passage_ids=torch.tensor([0, 1, 2, 3, 9]), is_passage=torch.arange(5) < 4, **common
    )
    assert torch.equal(without, padded) and without > 0.1


def test_half_precision_embeddings_are_scored_in_fp32():
    generator = torch.Generator().manual_seed(0)
    questions, passages = torch.randn(2, 6, 16, generator=generator).bfloat16()
    rest = (torch.arange(6), torch.ones(6, dtype=torch.bool), torch.arange(6)[:, None], 0.05, 6)
    loss = contrastive_loss(questions, passages, *rest)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(questions.float(), passages.float(), *rest))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_loss_of_passages_that_are_all_alike_is_the_logarithm_of_their_number(temperature):
    ones = torch.ones(8, 4)
    loss = contrastive_loss(
        ones, ones, torch.arange(8), torch.ones(8, dtype=torch.bool), torch.arange(8)[:, None], temperature, 8
    )
    assert loss.item() == pytest.approx(math.log(8))
