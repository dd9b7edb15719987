"""Batches of one source each: no row is lost or comes twice in a pass, for any number of ranks, from any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.orders import RowsBySource
from tests.builders import random_training_rows

ROWS = random_training_rows(120, num_passages=90, seed=2)


def sources_of(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def orders(sources: np.ndarray, size: int, seed: int = 3) -> RowsBySource:
    return RowsBySource(random_training_rows(len(sources), max_length=2), seed, sources, size)


@settings(max_examples=25)
@given(st.lists(st.integers(4, 30), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 5))
def test_each_batch_has_one_source_and_each_pass_over_a_source_has_each_row_once(sizes, size, seed):
    sources = sources_of(*sizes)
    made, epochs = orders(sources, size, seed), 3
    number = int((epochs * np.array(sizes) // size).sum())  # batches that three passes over every source fill
    taken = [made.take(batch * size, size)[1] for batch in range(number)]
    assert all(len(set(sources[rows].tolist())) == 1 for rows in taken)
    for source, count in enumerate(sizes):
        stream = [row for rows in taken for row in rows.tolist() if sources[row] == source]
        assert len(stream) == epochs * count // size * size, "the rest of a pass opens the next batch of its source"
        for start in range(0, len(stream), count):
            part = stream[start : start + count]
            assert len(set(part)) == len(part) and (len(part) == count or start + count > len(stream))
    again = orders(sources, size, seed)
    assert again.take((number - 1) * size, size)[1].tolist() == taken[-1].tolist(), "a resume at any step is an index"


def test_sources_are_drawn_as_often_as_they_have_batches_and_in_another_order_by_seed_and_epoch():
    sources = sources_of(80, 40)
    drawn = [
        [int(sources[orders(sources, 4, seed).take(4 * batch, 4)[1][0]]) for batch in range(60)] for seed in (1, 2)
    ]
    assert [sum(part) for part in (drawn[0][:30], drawn[0][30:])] == [10, 10]
    assert drawn[0] != drawn[1] and drawn[0][:30] != drawn[0][30:]


@pytest.mark.parametrize("world", [2, 4])
def test_the_batches_of_one_worker_are_those_of_several(world):
    def made(rank: int, world: int) -> GlobalBatches:
        return GlobalBatches(ROWS, 8, 0.5, 1, pad_id=0, rank=rank, world_size=world, sources=sources)

    sources = sources_of(60, 37, 23)
    for batch in (0, 7, 16, 40):
        alone = made(0, 1).make(batch)
        parts = [made(rank, world).make(batch) for rank in range(world)]
        assert sorted(np.concatenate([part.rows for part in parts])) == sorted(alone.rows)
        assert len(set(sources[alone.rows].tolist())) == 1
        ids = np.concatenate([part.passage_ids[part.is_passage].numpy() for part in parts])
        assert sorted(ids) == sorted(alone.passage_ids[alone.is_passage].tolist())


def test_a_source_that_cannot_fill_a_batch_is_refused():
    with pytest.raises(ValueError, match="^a source has 3 rows, fewer than the 4 of a batch"):
        orders(sources_of(9, 3), 4)


def test_the_first_batch_of_each_source_is_known_because_memory_is_planned_for_the_largest():
    sources = np.repeat([0, 1, 2], [60, 40, 20])
    batches = GlobalBatches(ROWS, 8, 0.0, 1, pad_id=0, sources=sources)
    numbers = batches.to_plan_from()
    assert [int(sources[batches.take(number)[1][0]]) for number in numbers] == [0, 1, 2]
    earlier = [int(sources[batches.take(number)[1][0]]) for number in range(max(numbers))]
    assert all(earlier.index(source) == number for source, number in enumerate(numbers) if source in earlier)
    assert GlobalBatches(ROWS, 8, 0.0, 1, pad_id=0).to_plan_from() == [0]
