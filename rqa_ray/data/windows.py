"""The order of training rows that do not fit in memory: a shuffle in windows, each a mix of many places of the files.

The files are cut into small parts whose rows were counted. Epoch e is a permutation of the parts, seeded by (seed, e)
and cut into windows of like size; a window's rows are shuffled by (seed, e, window). So a file that is
sorted by source makes no batches of one source, one window after the other is all that has to be in memory, and which
rows a batch has follows from its number: for any number of ranks, and after a resume without a row repeated or
skipped. The two levels are those of tf.data and WebDataset (shuffled shards, shuffle buffer), without the buffer's
dependence on what was read before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import input_order, runs
from rqa_ray.data.rows import TrainingRows

WINDOW_BYTES = 64 * 2**20  # about what a window's tokenized rows take
PART_BYTES = 2**18  # a window mixes 256 of them


class Part(NamedTuple):
    """A range of a training file."""

    file: int
    path: str
    start: int
    end: int | None  # None: to the end of the file
    num_bytes: int


@dataclass
class EpochPlan:
    """One epoch: which parts its windows have, and at which row they begin."""

    parts: list[np.ndarray]  # numbers of the parts of each window
    starts: np.ndarray  # (windows + 1,) the first row of each window, and the number of all rows


class WindowPlan:
    """The windows of every epoch, from the parts in input order and their numbers of rows (P,)."""

    def __init__(self, parts: list[Part], num_rows: np.ndarray, seed: int, window_bytes: int) -> None:
        self.parts, self.num_rows, self.seed = parts, num_rows, seed
        self._num_bytes = np.array([part.num_bytes for part in parts])
        self._num_windows = max(1, -(-int(self._num_bytes.sum()) // window_bytes))
        self._starts = np.cumsum([0, *num_rows])  # of the parts, in the order of the input
        self._epochs: dict[int, EpochPlan] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; it and its neighbours are kept, since a batch may straddle two."""
        plan = self._epochs.get(epoch) or self._plan(epoch)
        self._epochs = {other: kept for other, kept in self._epochs.items() if abs(other - epoch) == 1} | {epoch: plan}
        return plan

    def _plan(self, epoch: int) -> EpochPlan:
        order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(self.parts))
        ends = np.cumsum(self._num_bytes[order])  # cut where the bytes are shared out evenly: no small last window
        cuts = np.searchsorted(ends, np.arange(1, self._num_windows) * (ends[-1] / self._num_windows))
        parts = [part for part in np.split(order, np.unique(cuts)) if self.num_rows[part].sum()]
        return EpochPlan(parts, np.cumsum([0, *(self.num_rows[part].sum() for part in parts)]))

    def numbers(self, epoch: int, window: int) -> np.ndarray:
        """Numbers of a window's rows among all rows, in the order of the input."""
        parts = np.sort(self.epoch(epoch).parts[window])
        return runs(self._starts[parts], self.num_rows[parts])[0]

    def shuffle(self, epoch: int, window: int, count: int) -> np.ndarray:
        """(count,) the order of a window's rows."""
        return np.random.default_rng([self.seed, epoch, 3, window]).permutation(count)


class WindowedRows:
    """All rows of a plan as `GlobalBatches` takes them; `fetch(epoch, window)` gives a window's tokenized table.

    Golds of a question are the union over the windows that a batch is in, not over all files.
    """

    def __init__(self, plan: WindowPlan, fetch: Callable[[int, int], pa.Table]) -> None:
        self.plan, self.fetch = plan, fetch
        self._size = int(plan.num_rows.sum())
        self._rows = lru_cache(maxsize=1)(self._read)

    def __len__(self) -> int:
        return self._size

    def take(self, first: int, count: int) -> tuple[TrainingRows, np.ndarray]:
        """Rows, and which of them (count,) are at some consecutive places of the order."""
        windows, place, begin = [], first, -1
        while place < first + count:
            epoch, within = divmod(place, len(self))
            starts = self.plan.epoch(epoch).starts
            window = int(np.searchsorted(starts, within, side="right")) - 1
            begin = place - within + int(starts[window]) if begin < 0 else begin
            windows.append((epoch, window))
            place += int(starts[window + 1]) - within
        return self._rows(tuple(windows)), first - begin + np.arange(count)

    def _read(self, windows: tuple[tuple[int, int], ...]) -> TrainingRows:
        tables = [self.fetch(*window) for window in windows]
        orders, pairs, base = [], [], 0
        for (epoch, window), table in zip(windows, tables, strict=True):
            shuffled = self.plan.shuffle(epoch, window, len(table))
            orders.append(base + input_order([table])[shuffled])
            pairs.append(self.plan.numbers(epoch, window)[shuffled])
            base += len(table)
        return TrainingRows.from_tables(tables, np.concatenate(orders), np.concatenate(pairs))
