"""Reads columns of Arrow blocks as numpy arrays, which are views: nothing is copied.

Blocks come in any order. Each row stores its place (`file`, `line`, `item`) in the input, so its number does not
depend on the order of the blocks. N is the number of rows in all blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

PLACE = ("file", "line", "item")


class Ragged(Sequence):
    """N rows of unequal length, as views of the Arrow list arrays that hold them."""

    def __init__(self, arrays: Sequence[pa.ListArray], order: np.ndarray) -> None:
        self._values = [array.values.to_numpy(zero_copy_only=True) for array in arrays]
        offsets = [np.asarray(array.offsets) for array in arrays]
        self._block = concat([np.full(len(array), index, np.int32) for index, array in enumerate(arrays)])[order]
        self._start = concat([part[:-1] for part in offsets])[order]
        self.lengths = concat([np.diff(part) for part in offsets])[order]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        start = self._start[row]
        return self._values[self._block[row]][start : start + self.lengths[row]]

    def take(self, rows: np.ndarray) -> Ragged:
        """Returns some of the rows in the order asked for; a row may be asked for twice."""
        taken = copy.copy(self)
        taken._block, taken._start, taken.lengths = self._block[rows], self._start[rows], self.lengths[rows]
        return taken


def input_order(tables: Sequence[pa.Table]) -> np.ndarray:
    """Returns (N,) the numbers of the rows of all tables (counted in table order), in the order of the input."""
    return np.lexsort([column(tables, name) for name in reversed(PLACE)])


def column(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """Returns one numeric column of all tables, in table order."""
    return concat([table[name].to_numpy() for table in tables])


def arrays(tables: Sequence[pa.Table], name: str) -> list[pa.Array]:
    """Returns the Arrow arrays of one column, in table order."""
    return [chunk for table in tables for chunk in table[name].chunks]


def inner(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """Returns the numbers inside a column of lists, in table order."""
    return concat([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in arrays(tables, name)])


def list_lengths(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """Returns (N,) the lengths of the lists in a column, in table order."""
    return concat([np.diff(np.asarray(chunk.offsets)) for chunk in arrays(tables, name)])


def inner_places(tables: Sequence[pa.Table], name: str, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the items of the rows stand among the inner values of a column of lists, counted over all blocks.

    The first result are the places (M,) of the items, row after row in the order asked for. The second are the offsets
    (N + 1,) of the rows in these places.
    """
    starts, base = [], 0
    for chunk in arrays(tables, name):
        starts.append(np.asarray(chunk.offsets)[:-1].astype(np.int64) + base)
        base += len(chunk.values)
    return runs(concat(starts)[order], list_lengths(tables, name)[order])


def runs(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `counts[i]` consecutive numbers from each start, run after run, and the offsets of the runs."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1]), offsets


def concat(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates arrays; no arrays make an empty array of numbers."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
