"""Columns of Arrow blocks as numpy arrays: views, nothing copied.

Blocks come in any order; each row knows its place (`file`, `line`, `item`) in the input, so that its number here is
the same whatever way the blocks came. N is the number of rows of all blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

PLACE = ("file", "line", "item")


class Ragged(Sequence):
    """N rows of unequal length as views of the Arrow list arrays that hold them."""

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
        """Some of the rows, in the order asked for; a row may come again."""
        taken = copy.copy(self)
        taken._block, taken._start, taken.lengths = self._block[rows], self._start[rows], self.lengths[rows]
        return taken


def input_order(tables: Sequence[pa.Table]) -> np.ndarray:
    """(N,) numbers of the rows of all tables, one after the other, in the order of the input."""
    return np.lexsort([column(tables, name) for name in reversed(PLACE)])


def column(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """One numeric column over all tables, in table order."""
    return concat([table[name].to_numpy() for table in tables])


def arrays(tables: Sequence[pa.Table], name: str) -> list[pa.Array]:
    """The arrays that hold one column, in table order."""
    return [chunk for table in tables for chunk in table[name].chunks]


def inner(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """The numbers in a column of lists, in table order."""
    return concat([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in arrays(tables, name)])


def list_lengths(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """(N,) lengths of the lists of a column, in table order."""
    return concat([np.diff(np.asarray(chunk.offsets)) for chunk in arrays(tables, name)])


def inner_places(tables: Sequence[pa.Table], name: str, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in the inner values of a column of lists, all blocks' one after the other, the items of the rows stand.

    Returns the places of the items (M,), row after row in an order, and the offsets (N + 1,) of the rows in them.
    """
    starts, base = [], 0
    for chunk in arrays(tables, name):
        starts.append(np.asarray(chunk.offsets)[:-1].astype(np.int64) + base)
        base += len(chunk.values)
    return runs(concat(starts)[order], list_lengths(tables, name)[order])


def runs(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers from each start on, as many as counted, one run after the other; and the runs' offsets in them."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1]), offsets


def concat(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array; no part makes an empty one of numbers."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
