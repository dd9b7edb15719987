"""The losses compared with loops over questions and columns, in float64; on 2 and 4 real ranks, with one process."""

import math
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.loss_settings import LossSettings
from rqa_ray.retriever import distributed
from rqa_ray.retriever.candidates import gather_candidates
from rqa_ray.retriever.distillation import TeacherScores
from rqa_ray.retriever.losses import (
    InBatchContrastive,
    Matryoshka,
    average_gradients,
    make_loss,
    mean_over_global_batch,
    parameter_groups,
    temperature_of,
)
from tests.ranks import run_ranks


def contrastive_loss(
    questions, passages, passage_ids, is_passage, gold_ids, temperature, global_batch_size, loss=InBatchContrastive
):
    """Returns the mean over the global batch, as the trainer computes it."""
    candidates, loss = gather_candidates(passages, passage_ids, is_passage, gold_ids), loss(temperature)
    if loss.is_symmetric:
        candidates = candidates.with_askers(questions, len(questions))
    return mean_over_global_batch(loss(questions, candidates), global_batch_size)


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


def symmetric(questions, passages, passage_ids, is_passage, gold_ids, temperature, global_batch_size):
    """The mean of `brute_force` and of the cross-entropy of each question's passage against the questions."""
    rest = passage_ids, is_passage, gold_ids, temperature, global_batch_size
    losses = []
    for own in range(len(questions)):
        others = [row for row in range(len(questions)) if passage_ids[own] not in gold_ids[row] or row == own]
        logits = torch.stack([(questions[row] * passages[own]).sum() / temperature for row in others])
        losses.append(logits.logsumexp(0) - logits[others.index(own)])
    return (brute_force(questions, passages, *rest) + torch.stack(losses).sum() / global_batch_size) / 2


def nested(questions, passages, *rest, function=brute_force, similarity="cosine", weights=(2.0, 0.5), **more):
    """The weighted sum of a loss of the first three and of all dimensions."""
    total = weights[1] * function(questions, passages, *rest, **more)
    few = questions[:, :3], passages[:, :3]
    if similarity == "cosine" and questions.shape[1] > 3:
        few = [part / part.norm(dim=1, keepdim=True) for part in few]
    return total + weights[0] * function(*few, *rest, **more)


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


Symmetric = partial(InBatchContrastive, is_symmetric=True)


@given(batches(), st.sampled_from([1, 20, 2**24]))
def test_a_symmetric_loss_is_the_mean_of_both_directions_without_other_questions_of_the_same_gold(batch, max_scores):
    with mock.patch("rqa_ray.retriever.losses.MAX_SCORES", max_scores):
        found = gradients(partial(contrastive_loss, loss=Symmetric), batch, torch.float32)
    for value, reference in zip(found, gradients(symmetric, batch, torch.float64), strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inner", "function"), [(InBatchContrastive, brute_force), (Symmetric, symmetric)])
@given(batches(), st.sampled_from(["cosine", "dot"]))
def test_matryoshka_is_the_weighted_sum_of_the_loss_of_cut_embeddings(inner, function, batch, similarity):
    def ours(temperature):
        return Matryoshka(inner(temperature), (3, 5), (2.0, 0.5), similarity)

    found = gradients(partial(contrastive_loss, loss=ours), batch, torch.float32)
    expected = gradients(partial(nested, function=function, similarity=similarity), batch, torch.float64)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=2e-4, atol=2e-4)


@given(batches(), st.booleans())
def test_the_gradient_of_a_learned_temperature_is_that_of_the_formula(batch, is_symmetric):
    loss = InBatchContrastive(batch["temperature"], is_symmetric=is_symmetric, learns_temperature=True)
    contrastive_loss(**batch, loss=lambda _: loss).backward()
    start = torch.tensor(batch["temperature"], dtype=torch.float64).log().requires_grad_()
    doubled = {name: batch[name].double() for name in ("questions", "passages")}
    (symmetric if is_symmetric else brute_force)(**batch | doubled | {"temperature": start.exp()}).backward()
    torch.testing.assert_close(loss.log_temperature.grad.double(), start.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("beyond", "bound", "way_back"), [(1e-4, 0.01, 1.0), (1e4, 100.0, -1.0)])
def test_a_learned_temperature_stops_at_its_bounds_and_finds_back(beyond, bound, way_back):
    loss = InBatchContrastive(0.05, learns_temperature=True)
    with torch.no_grad():
        loss.log_temperature.fill_(math.log(beyond))
    assert temperature_of(loss) == pytest.approx(bound)
    questions, ids = torch.eye(4), torch.arange(4)
    golds = questions.roll(1, 0) if way_back > 0 else questions  # a model that is wrong wants a higher temperature
    candidates = gather_candidates(golds, ids, torch.ones(4, dtype=torch.bool), ids[:, None])
    loss(questions, candidates).backward()
    assert loss.log_temperature.item() == pytest.approx(math.log(bound))
    assert -loss.log_temperature.grad.sign().item() == way_back


def test_the_settings_make_the_loss_and_the_temperature_has_its_own_learning_rate():
    plain = make_loss(LossSettings(), "cosine")
    assert type(plain) is InBatchContrastive and not plain.is_symmetric and parameter_groups(plain) == []
    asked = LossSettings(
        temperature=0.1, symmetric_loss=True, learn_temperature=True, matryoshka_dims=[8, 4], distill_weight=0.5
    )
    loss = make_loss(asked, "dot")
    assert (loss.weights, loss.similarity, loss.is_symmetric) == ({8: 1.0, 4: 1.0}, "dot", True)
    assert temperature_of(loss) == pytest.approx(0.1) and loss.loss.distill_weight == 0.5
    (group,) = parameter_groups(loss)
    assert group == {"params": [loss.loss.log_temperature], "weight_decay": 0.0, "lr": 0.01}
    assert parameter_groups(torch.nn.Linear(1, 1))[0].keys() == {"params", "weight_decay"}


# Ranks

NUM_QUESTIONS, PASSAGE_IDS = 5, np.array([1, 2, 1, 4, 5, 6, 7, 8])  # two questions have one gold; three hard negatives
GOLDS = torch.tensor([[1, 1], [2, 5], [1, 1], [4, 4], [5, 5]])  # the second question has two golds
ON_RANKS = {
    "plain": lambda: InBatchContrastive(0.2),
    "symmetric": lambda: Symmetric(0.2),
    "learned": lambda: InBatchContrastive(0.3, learns_temperature=True),
    "matryoshka": lambda: Matryoshka(InBatchContrastive(0.2), (6, 3), (1.0, 0.5)),
    "all, with a teacher": lambda: Matryoshka(Symmetric(0.2, 0.5, 2.0, learns_temperature=True), (6, 4, 2)),
}


def on_rank() -> dict[str, list[torch.Tensor]]:
    """The means over ranks, as DDP makes them, of each loss and of its gradients by embeddings and own parameters."""
    rank, ranks, found = distributed.rank(), distributed.world_size(), {}
    mine = np.arange(NUM_QUESTIONS)[rank::ranks]
    passages = np.concatenate([mine, NUM_QUESTIONS + np.arange(3)[ranks - 1 - rank :: ranks]])
    most, num_passages = -(-NUM_QUESTIONS // ranks), -(-NUM_QUESTIONS // ranks) + -(-3 // ranks)
    ids = torch.from_numpy(np.pad(PASSAGE_IDS[passages], (0, num_passages - len(passages))))
    teacher = TeacherScores(torch.tensor([[6, 7]] * len(mine)), torch.tensor([[0.5, 2.0]] * len(mine)))
    for name, make in ON_RANKS.items():
        loss, table = make(), torch.randn(13, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        given = table[NUM_QUESTIONS + passages], ids, torch.arange(num_passages) < len(passages), GOLDS[mine]
        candidates = gather_candidates(*given, teacher).with_askers(table[mine], most)
        value = mean_over_global_batch(loss(table[mine], candidates), NUM_QUESTIONS)
        value.backward()
        average_gradients(loss)
        parts = [distributed.gather(part[None]).mean(0) for part in (value.detach(), table.grad)]
        found[name] = [*parts, *(parameter.grad for parameter in loss.parameters())]
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_has_the_loss_and_the_gradients_of_one_process(ranks, tmp_path):
    expected = on_rank()
    assert len({float(parts[0]) for parts in expected.values()}) == len(ON_RANKS)
    for found in run_ranks(ranks, on_rank, tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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
