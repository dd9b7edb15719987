"""Global batches have the same rows at the same step for any number of ranks, made in any order.

N questions, G of them in a global batch, W ranks.
"""

import accelerate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.batches import BatchLoader, GlobalBatches, RankBatch, deal
from rqa_ray.data.rows import TrainingRows
from rqa_ray.retriever.forward_plan import ForwardPlan
from tests.builders import random_training_rows

ROWS = random_training_rows(41, num_passages=400, seed=5)  # a prime number of rows: no batch size divides it
MANY = random_training_rows(400, max_length=120, num_passages=300, seed=6)
WORLDS = (1, 2, 3, 4)


def batches(
    rows: TrainingRows = ROWS,
    size: int = 12,
    ratio: float = 0.5,
    seed: int = 1,
    rank: int = 0,
    world: int = 1,
    own: int = 0,
) -> GlobalBatches:
    return GlobalBatches(rows, size, ratio, seed, 0, ForwardPlan(64), rank, world, negatives_per_question=own)


def on_all_ranks(batch: int, world: int, **options) -> list[RankBatch]:
    return [batches(rank=rank, world=world, **options)[batch] for rank in range(world)]


def texts(batch: RankBatch) -> list[list[int]]:
    """Returns the token rows of the questions, then of the passages."""
    rows = [
        ids[mask.bool()].tolist()
        for token_batch in batch.token_batches
        for ids, mask in zip(token_batch.input_ids, token_batch.attention_mask, strict=True)
    ]
    return [rows[place] for place in batch.order]


def num_tokens(batch: RankBatch) -> int:
    return sum(map(len, texts(batch)))


def negative_ids(batch: RankBatch) -> list[int]:
    return batch.passage_ids[batch.is_passage][batch.num_questions :].tolist()


def assert_same(one: RankBatch, other: RankBatch) -> None:
    assert (one.index, one.num_questions, one.global_batch_size) == (
        other.index,
        other.num_questions,
        other.global_batch_size,
    )
    assert one.rows.tolist() == other.rows.tolist()
    for name in ("order", "passage_ids", "is_passage", "gold_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for token_batch, other_token_batch in zip(one.token_batches, other.token_batches, strict=True):
        assert (
            torch.equal(token_batch.input_ids, other_token_batch.input_ids)
            and token_batch.lengths == other_token_batch.lengths
        )


@st.composite
def cases(draw) -> dict:
    """Arguments of `on_all_ranks`, the G of few rows to the G of all."""
    num_rows = draw(st.integers(4, 30))
    rows = random_training_rows(num_rows, seed=draw(st.integers(0, 20)), num_passages=draw(st.integers(2, 60)))
    size = draw(st.integers(4, num_rows))
    ratio = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0, 3.0]))
    return {
        "rows": rows,
        "size": size,
        "ratio": ratio,
        "own": draw(st.sampled_from([0, 1, 2])),
        "seed": draw(st.integers(0, 9)),
        "batch": draw(st.integers(0, 9)),
    }


# Epochs


@pytest.mark.parametrize("size", [1, 7, 20, 40, 41])
def test_every_epoch_is_a_permutation_and_its_leftovers_open_the_next(size):
    parts = batches(size=size)
    stream = np.concatenate([parts.take(batch)[1] for batch in range(4 * 41 // size)])
    epochs = [stream[start : start + 41] for start in range(0, len(stream) - 40, 41)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(41))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_another_seed_gives_another_order():
    assert batches(seed=1).take(0)[1].tolist() != batches(seed=2).take(0)[1].tolist()


@pytest.mark.parametrize(("size", "world"), [(42, 1), (0, 1), (2, 3)])
def test_a_batch_that_the_rows_or_the_ranks_do_not_allow_is_refused_with_what_is_needed(size, world):
    with pytest.raises(ValueError, match=f"global_batch_size={size}: needs {world} to 41 questions"):
        batches(size=size, world=world)


# The same batch for any number of ranks


@settings(max_examples=25)
@given(cases())
def test_a_global_batch_is_the_same_questions_and_hard_negatives_for_1_to_4_ranks(case):
    alone = on_all_ranks(world=1, **case)[0]
    for world in WORLDS[1:]:
        parts = on_all_ranks(world=world, **case)
        assert sorted(np.concatenate([part.rows for part in parts])) == sorted(alone.rows)
        assert sorted(sum(map(negative_ids, parts), [])) == sorted(negative_ids(alone))
        assert sorted(sum(map(texts, parts), [])) == sorted(texts(alone))


@settings(max_examples=25)
@given(cases(), st.sampled_from(WORLDS))
def test_every_text_and_id_belongs_to_its_question(case, world):
    rows = case["rows"]
    text_of = {int(number): row.tolist() for number, row in zip(rows.table.ids, rows.table.tokens, strict=True)}
    parts = on_all_ranks(world=world, **case)
    assert len({part.gold_ids.shape[1] for part in parts}) == 1, "they could not be gathered"
    for part in parts:
        found, n = texts(part), part.num_questions
        assert len(found) == n + int(part.is_passage.sum())
        assert found[:n] == [rows.questions[row].tolist() for row in part.rows]
        assert found[n : 2 * n] == [rows.passages[row].tolist() for row in part.rows]
        assert found[2 * n :] == [text_of[number] for number in negative_ids(part)]
        assert part.passage_ids[:n].tolist() == rows.passage_ids[part.rows].tolist()
        assert [set(golds.tolist()) for golds in part.gold_ids] == [set(rows.golds[row].tolist()) for row in part.rows]


@settings(max_examples=25)
@given(cases(), st.sampled_from(WORLDS))
def test_ranks_have_as_many_questions_and_hard_negatives_as_each_other_within_one(case, world):
    parts = on_all_ranks(world=world, **case)
    for counts in ([part.num_questions for part in parts], [len(negative_ids(part)) for part in parts]):
        assert max(counts) - min(counts) <= 1
    assert min(part.num_questions for part in parts) >= 1


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("size", [128, 125])
def test_ranks_have_as_many_tokens_as_each_other_within_a_few_percent(world, size):
    for batch in range(5):
        counts = [num_tokens(part) for part in on_all_ranks(batch, world, rows=MANY, size=size, ratio=0.2)]
        assert max(counts) < 1.08 * min(counts)  # a rank may have one question more


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_dealing_gives_each_item_to_one_rank_even_in_items_and_in_tokens(lengths, world):
    lengths = np.array(lengths)
    shares = [deal(np.arange(len(lengths)), lengths, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [lengths[share].sum() for share in shares]
    spread = lengths.max() - lengths.min()
    assert max(tokens) - min(tokens) <= (spread if len(lengths) % world == 0 else spread + lengths.max())


@pytest.mark.parametrize("world", range(1, 9))
def test_dealing_there_and_back_gives_lengths_that_grow_evenly_in_exactly_equal_sums(world):
    lengths = np.arange(5, 5 + 4 * world)
    assert len({lengths[deal(np.arange(4 * world), lengths, rank, world)].sum() for rank in range(world)}) == 1


@given(st.permutations(range(20)), st.integers(1, 5))
def test_what_a_rank_is_dealt_does_not_depend_on_the_order_of_the_items(items, world):
    items = np.array(items)
    lengths = items % 4 + 1
    for rank in range(world):
        expected = deal(np.arange(20), np.arange(20) % 4 + 1, rank, world)
        assert deal(items, lengths, rank, world).tolist() == expected.tolist()


# Padding


@settings(max_examples=25)
@given(cases(), st.sampled_from(WORLDS))
def test_ranks_have_equally_many_passages_and_padding_only_where_one_is_short(case, world):
    parts = on_all_ranks(world=world, **case)
    assert len({len(part.passage_ids) for part in parts}) == 1
    drawn = sum(len(negative_ids(part)) for part in parts)
    short = max(
        0, -(-max(int(case["ratio"] * case["size"]), drawn) // world) - drawn // world
    )  # where there are too few hard negatives
    for part in parts:
        real = int(part.is_passage.sum())
        assert part.is_passage.tolist() == [True] * real + [False] * (len(part.passage_ids) - real)
        assert len(part.passage_ids) - real <= (case["size"] % world > 0) + short


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_is_padded_where_the_ranks_divide_questions_and_hard_negatives(world):
    for part in on_all_ranks(3, world, size=12, ratio=1.0, rows=MANY):
        assert part.is_passage.all()
        assert len(part.passage_ids) == 24 // world


# Hard negatives


@settings(max_examples=40)
@given(cases())
def test_hard_negatives_are_distinct_passages_of_the_batch_none_a_gold_of_it_as_many_as_asked_or_as_there_are(case):
    rows = case["rows"]
    part = on_all_ranks(world=1, **(case | {"own": 0}))[0]
    golds = {gold for row in part.rows for gold in rows.golds[row].tolist()}
    available = set(rows.negatives.ids[rows.negatives.of_pairs(part.rows)].tolist()) - golds
    found = negative_ids(part)
    assert len(found) == len(set(found)) == min(int(case["ratio"] * case["size"]), len(available))
    assert set(found) <= available


@settings(max_examples=40)
@given(cases())
def test_each_question_brings_as_many_of_its_own_hard_negatives_as_asked_or_as_it_has(case):
    case |= {"own": 2, "ratio": 0.0}
    rows, part = case["rows"], on_all_ranks(world=1, **case)[0]
    golds = {gold for row in part.rows for gold in rows.golds[row].tolist()}
    found, own = (
        negative_ids(part),
        [rows.negatives.ids[rows.negatives.of_pairs(part.rows[[n]])] for n in range(part.num_questions)],
    )
    assert len(found) == len(set(found)) and not golds & set(found)
    for ids in own:
        wanted = [number for number in ids.tolist() if number not in golds]
        assert len(set(wanted) & set(found)) >= min(2, len(wanted)) - (len(wanted) - len(set(wanted)))
    assert set(found) <= {number for ids in own for number in ids.tolist()}
    assert len(found) <= 2 * part.num_questions


@settings(max_examples=20)
@given(cases())
def test_the_share_of_hard_negatives_is_drawn_from_what_no_question_has_brought(case):
    own, both = (on_all_ranks(world=1, **(case | {"own": 1, "ratio": ratio}))[0] for ratio in (0.0, 0.5))
    every = negative_ids(on_all_ranks(world=1, **(case | {"own": 0, "ratio": 9.0}))[0])
    assert set(negative_ids(own)) <= set(negative_ids(both)) <= set(every)
    assert len(negative_ids(both)) == min(len(negative_ids(own)) + case["size"] // 2, len(every))


def test_a_question_brings_other_hard_negatives_of_its_own_in_every_epoch_until_each_had_its_turn():
    parts = batches(size=41, ratio=0.0, own=1)
    draws = [tuple(sorted(negative_ids(parts[epoch]))) for epoch in range(60)]
    assert len(set(draws[:5])) == 5
    assert {number for draw in draws for number in draw} == set(negative_ids(batches(size=41, ratio=10)[0]))


def test_every_epoch_draws_other_hard_negatives():
    parts = batches(size=41, ratio=0.2)
    draws = [tuple(sorted(negative_ids(parts[epoch]))) for epoch in range(5)]  # the same rows each time
    assert {len(draw) for draw in draws} == {8}
    assert len(set(draws)) == 5


def test_every_hard_negative_has_its_turn():
    parts = batches(size=41, ratio=0.2)
    possible = negative_ids(batches(size=41, ratio=10)[0])
    drawn = {number for epoch in range(60) for number in negative_ids(parts[epoch])}
    assert drawn == set(possible)


# An index, not a replay


@settings(max_examples=20)
@given(cases(), st.lists(st.integers(0, 12), min_size=2, max_size=8), st.sampled_from(WORLDS))
def test_a_batch_is_the_same_whenever_and_in_whatever_order_it_is_asked_for(case, asked, world):
    del case["batch"]
    used = batches(**case, rank=world - 1, world=world)
    for batch in asked:
        assert_same(used[batch], batches(**case, rank=world - 1, world=world)[batch])


def test_a_token_batch_has_no_more_tokens_than_asked_for_with_padding_unless_it_is_one_text():
    for token_batch in batches(rows=MANY, size=64)[0].token_batches:
        assert token_batch.num_tokens <= 64 or len(token_batch) == 1


# Epochs as transformers' Trainer counts them


def pass_over(loader: BatchLoader, epoch: int, skip: int = 0) -> list[int]:
    """Makes one pass with the steps of `Trainer._run_epoch`; returns the numbers of the batches."""
    loader = accelerate.skip_first_batches(loader, skip) if skip else loader
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    underlying = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if hasattr(underlying, "set_epoch"):
        underlying.set_epoch(epoch)
    return [batch.index for batch in loader]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("skip", [1, 2, 5])
def test_the_order_after_a_resume_in_the_middle_of_epoch_1_is_the_undisturbed_one(accumulation, skip):
    loader = BatchLoader(batches(size=4), accumulation)
    undisturbed = [pass_over(loader, epoch) for epoch in (0, 1, 2)]
    resumed = BatchLoader(batches(size=4), accumulation)
    assert pass_over(resumed, 1, skip) == undisturbed[1][skip:]
    assert pass_over(resumed, 2) == undisturbed[2]


@pytest.mark.parametrize("accumulation", [1, 3, 20])
def test_epochs_are_whole_optimizer_steps_and_follow_each_other_without_a_gap(accumulation):
    loader = BatchLoader(batches(size=4), accumulation)
    assert len(loader) % accumulation == 0
    order = sum((pass_over(loader, epoch) for epoch in (0, 1, 2)), [])
    assert order == list(range(3 * len(loader)))


def test_an_epoch_has_as_many_batches_as_fit_in_the_rows():
    assert len(BatchLoader(batches(size=4), 1)) == 10
    assert len(BatchLoader(batches(size=4), 4)) == 8


def test_the_next_batch_is_made_ahead_and_any_other_one_on_demand(monkeypatch):
    made = batches(size=4)
    expected = {number: batches(size=4).make(number) for number in range(6)}
    numbers = []
    make = made.make
    monkeypatch.setattr(made, "make", lambda number: numbers.append(number) or make(number))
    for number in (0, 1, 4, 3):
        assert_same(made[number], expected[number])
    made._thread.shutdown()
    assert numbers == [0, 1, 2, 4, 5, 3, 4]
