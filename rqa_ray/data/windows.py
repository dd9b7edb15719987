"""Orders training rows that do not fit in memory: a shuffle in windows, each mixed from many places of the files.

The files are cut into small parts, whose rows were counted. Epoch e is a permutation of the parts, seeded by (seed, e)
and cut into windows of similar size. The rows of a window are shuffled by (seed, e, window). So a file that is sorted
by source makes no batch of one source, and memory holds one window at a time. The rows of a batch follow from its
number, for any number of ranks, and a resumed run repeats or skips no row.

tf.data and WebDataset have the same two levels (shuffled shards, a shuffle buffer), but their buffer depends on what
was read before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import input_order, runs
from rqa_ray.data.rows import TrainingRows

WINDOW_BYTES = 64 * 2**20  # about the memory of a window's tokenized rows
PART_BYTES = 2**18  # 256 parts make a window


class Part(NamedTuple):
    """A range of a training file."""

    file: int
    path: str
    start: int
    end: int | None  # None for the end of the file
    num_bytes: int


@dataclass
class EpochPlan:
    """The windows of one epoch: their parts, and the row at which each begins."""

    parts: list[np.ndarray]  # for each window, the numbers of its parts
    starts: np.ndarray  # (windows + 1,) the first row of each window, and the number of all rows


class WindowPlan:
    """The windows of every epoch, made from the parts in input order and their numbers of rows (P,)."""

    def __init__(self, parts: list[Part], num_rows: np.ndarray, seed: int, window_bytes: int) -> None:
        self.parts, self.num_rows, self.seed = parts, num_rows, seed
        self._num_bytes = np.array([part.num_bytes for part in parts])
        self._num_windows = max(1, -(-int(self._num_bytes.sum()) // window_bytes))
        self._starts = np.cumsum([0, *num_rows])  # first row of each part, in the order of the input
        self._epochs: dict[int, EpochPlan] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """Returns the plan of an epoch; the last two are kept, because a batch may contain rows of two epochs."""
        plan = self._epochs.get(epoch) or self._plan(epoch)
        self._epochs = {other: kept for other, kept in self._epochs.items() if abs(other - epoch) == 1} | {epoch: plan}
        return plan

    def _plan(self, epoch: int) -> EpochPlan:
        order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self.parts))
        ends = np.cumsum(self._num_bytes[order])  # windows of equal bytes, so that the last one is not small
        cuts = np.searchsorted(ends, np.arange(1, self._num_windows) * (ends[-1] / self._num_windows))
        parts = [part for part in np.split(order, np.unique(cuts)) if self.num_rows[part].sum()]
        return EpochPlan(parts, np.cumsum([0, *(self.num_rows[part].sum() for part in parts)]))

    def numbers(self, epoch: int, window: int) -> np.ndarray:
        """Returns the numbers of a window's rows among all rows, in the order of the input."""
        parts = np.sort(self.epoch(epoch).parts[window])
        return runs(self._starts[parts], self.num_rows[parts])[0]

    def shuffle(self, epoch: int, window: int, count: int) -> np.ndarray:
        """Returns (count,) the shuffled order of a window's rows."""
        return np.random.default_rng([self.seed, epoch, 3, window]).permutation(count)


class WindowedRows:
    """All rows of a plan, in the form that `GlobalBatches` takes; `fetch(epoch, window)` returns a window's table.

    The golds of a question are its golds in the windows of the batch, not in all files.
    """

    def __init__(self, plan: WindowPlan, fetch: Callable[[int, int], pa.Table]) -> None:
        self.plan, self.fetch = plan, fetch
        self._size = int(plan.num_rows.sum())
        self._rows = lru_cache(maxsize=1)(self._read)

    def __len__(self) -> int:
        return self._size

    def take(self, first: int, count: int) -> tuple[TrainingRows, np.ndarray]:
        """Returns rows, and which of them (count,) are at consecutive places of the order."""
        windows, place, begin = [], first, -1
        while place < first + count:
            epoch, within = divmod(place, len(self))
            starts = self.plan.epoch(epoch).starts
            window = int(np.searchsorted(starts, within, side="right")) - 1
            begin = place - within + int(starts[window]) if begin < 0 else begin
            windows.append((epoch, window))
            place += int(starts[window + 1]) - within
        return self._rows(tuple(windows)), first - begin + np.arange(count)

    def parts(self) -> Iterator[TrainingRows]:
        """Yields all rows, one window at a time."""
        for window in range(len(self.plan.epoch(0).parts)):
            yield self._read(((0, window),))

    def _read(self, windows: tuple[tuple[int, int], ...]) -> TrainingRows:
        tables = [self.fetch(*window) for window in windows]
        orders, pairs, base = [], [], 0
        for (epoch, window), table in zip(windows, tables, strict=True):
            shuffled = self.plan.shuffle(epoch, window, len(table))
            orders.append(base + input_order([table])[shuffled])
            pairs.append(self.plan.numbers(epoch, window)[shuffled])
            base += len(table)
        return TrainingRows.from_tables(tables, np.concatenate(orders), np.concatenate(pairs))
