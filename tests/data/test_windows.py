"""The order of rows that do not fit in memory; the tests tell rows by their passage ids."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.windows import Part, WindowedRows, WindowPlan
from tests.builders import table


class Files:
    """Parts with the given numbers of rows, 100 bytes for each row; remembers which windows were fetched."""

    def __init__(self, sizes: list[int], seed: int = 0, window_rows: int = 20) -> None:
        self.first = np.cumsum([0, *sizes])
        starts = self.first[:-1].tolist()
        parts = [Part(0, "f", start, None, 100 * size) for start, size in zip(starts, sizes, strict=True)]
        self.plan = WindowPlan(parts, np.array(sizes), seed, 100 * window_rows)
        self.fetched: list[tuple[int, int]] = []
        self.rows = WindowedRows(self.plan, self.fetch)

    def fetch(self, epoch: int, window: int):
        self.fetched.append((epoch, window))
        numbers = self.plan.epoch(epoch).parts[window]
        lines = [line for part in sorted(numbers) for line in range(self.first[part], self.first[part + 1])]
        return table("train", [{"line": line, "passage_id": line, "question_key": line} for line in lines])

    def ids(self, first: int, count: int) -> list[int]:
        rows, numbers = self.rows.take(first, count)
        return rows.passage_ids[numbers].tolist()


sizes_of_parts = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any)


@settings(max_examples=50)
@given(sizes_of_parts, st.integers(1, 60), st.integers(1, 17))
def test_every_epoch_has_each_row_once_however_it_is_cut(sizes, window_rows, count) -> None:
    files, num_rows = Files(sizes, window_rows=window_rows), sum(sizes)
    order = [row for first in range(0, 3 * num_rows, count) for row in files.ids(first, count)]
    for epoch in range(3):
        assert sorted(order[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_the_same_seed_repeats_the_order_and_another_gives_another() -> None:
    order = [Files([7] * 30, seed).ids(0, 420) for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2]
    assert order[0][:210] != order[0][210:]  # and so does the next epoch


def test_a_batch_is_a_function_of_its_number_so_that_a_resume_repeats_and_skips_nothing() -> None:
    whole = Files([7] * 30).ids(0, 400)
    for batch in (37, 3, 12):
        assert Files([7] * 30).ids(10 * batch, 10) == whole[10 * batch : 10 * batch + 10]


def test_windows_are_fetched_one_after_the_other() -> None:
    files = Files([5] * 40)  # 200 rows in windows of 20
    for batch in range(25):
        files.ids(8 * batch, 8)
    assert list(dict.fromkeys(files.fetched)) == [(0, window) for window in range(10)]
    assert len(files.fetched) <= 3 * 10  # again where a batch straddles two


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_global_batches_are_the_same_for_any_number_of_ranks(world) -> None:
    def ids(rank: int, ranks: int, batch: int) -> list[int]:
        batches = GlobalBatches(Files([6] * 25).rows, 16, 0.0, seed=0, pad_id=0, rank=rank, world_size=ranks)
        part = batches.make(batch)
        return part.passage_ids[part.is_passage].tolist()

    for batch in (0, 1, 9, 10):  # the last two straddle the epochs
        assert sorted(sum((ids(rank, world, batch) for rank in range(world)), [])) == sorted(ids(0, 1, batch))


def test_a_file_sorted_by_source_makes_no_batches_of_one_source() -> None:
    """In batches of 64, pairs with the same source are at most 1.5 times as frequent as after a full shuffle."""
    files = Files([40] * 1_500, window_rows=256 * 40)  # 6 windows of 256 parts, as in a real run
    source = np.repeat(np.arange(30), 2_000)  # 30 sources, one after the other
    order = np.array(files.ids(0, 59_968))
    full = np.random.default_rng(0).permutation(60_000)[:59_968]

    def share(order: np.ndarray) -> float:
        batches = source[order].reshape(-1, 64)
        pairs = sum(count * (count - 1) for batch in batches for count in Counter(batch.tolist()).values())
        return pairs / (len(batches) * 64 * 63)

    assert share(order) < 1.5 * share(full)
    assert share(np.arange(59_968)) > 20 * share(full)  # unshuffled: what the test would notice
