"""Tokenised data as workers hold it: views of Arrow blocks, nothing copied.

A dataset is a list of Arrow tables (blocks) in any order; each row knows its place (`file`, `line`, `item`) in the
input, so that its number here is the same whatever way the blocks came. N is the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

PLACE = ("file", "line", "item")


class Ragged(Sequence):
    """N rows of unequal length as views of the Arrow list arrays that hold them."""

    def __init__(self, arrays: Sequence[pa.ListArray], order: np.ndarray) -> None:
        self._values = [array.values.to_numpy(zero_copy_only=True) for array in arrays]
        offsets = [np.asarray(array.offsets) for array in arrays]
        self._block = _concat([np.full(len(array), index, np.int32) for index, array in enumerate(arrays)])[order]
        self._start = _concat([part[:-1] for part in offsets])[order]
        self.lengths = _concat([np.diff(part) for part in offsets])[order]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        start = self._start[row]
        return self._values[self._block[row]][start : start + self.lengths[row]]


@dataclass
class TrainingRows:
    """One row for each question and gold passage."""

    questions: Ragged  # token rows
    passages: Ragged
    passage_ids: np.ndarray  # (N,)
    golds: Golds
    negatives: Ragged  # token rows of all hard negatives
    negative_ids: np.ndarray
    negative_of: np.ndarray  # (N + 1,) offsets: the negatives of row i are negative_of[i] to negative_of[i + 1]

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table], order: np.ndarray | None = None) -> TrainingRows:
        """Rows in input order, or in another, from blocks with the columns that `readers` writes."""
        order = input_order(tables) if order is None else order
        ids = column(tables, "passage_id")[order]
        counts = Ragged(_arrays(tables, "hard_negative_ids"), order)
        # Row i's negatives are a run of its block's inner list; their places follow from the rows' starts.
        inner = [array.values for array in _arrays(tables, "hard_negative_tokens")]
        bases = np.cumsum([0, *(len(array) for array in inner)])[:-1]
        starts = counts._start + bases[counts._block]
        negative_of = np.concatenate([[0], np.cumsum(counts.lengths)])
        places = np.repeat(starts - negative_of[:-1], counts.lengths) + np.arange(negative_of[-1])
        return cls(
            questions=Ragged(_arrays(tables, "question_tokens"), order),
            passages=Ragged(_arrays(tables, "passage_tokens"), order),
            passage_ids=ids,
            golds=Golds.of(column(tables, "question_key")[order], ids),
            negatives=Ragged(inner, places),
            negative_ids=_concat([array.values.to_numpy() for array in _arrays(tables, "hard_negative_ids")])[places],
            negative_of=negative_of,
        )

    def __len__(self) -> int:
        return len(self.passage_ids)


@dataclass
class Golds(Sequence):
    """Golds of each row: the union over all rows whose question has the same wording."""

    ids: np.ndarray
    offsets: np.ndarray  # (N + 1,)

    @classmethod
    def of(cls, question_keys: np.ndarray, passage_ids: np.ndarray) -> Golds:
        """Unions from parallel arrays (N,) of question keys and gold passage ids; sorted within a row."""
        pairs = np.unique(np.stack([question_keys, passage_ids], axis=1), axis=0)
        keys, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        group = np.searchsorted(keys, question_keys)
        offsets = np.concatenate([[0], np.cumsum(counts[group])])
        places = np.repeat(first[group] - offsets[:-1], counts[group]) + np.arange(offsets[-1])
        return cls(pairs[places, 1], offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def select(self, rows: np.ndarray) -> Golds:
        """The golds of some rows, in their order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Golds(self.ids[places], offsets)


@dataclass
class Questions:
    """The questions of an evaluation file, one for each time that one is asked in it."""

    tokens: Ragged
    golds: Golds

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Questions:
        order = input_order(tables)
        golds = Golds.of(column(tables, "question_key")[order], column(tables, "passage_id")[order])
        first = first_of_question(tables, order)
        return cls(tokens=Ragged(_arrays(tables, "question_tokens"), order[first]), golds=golds.select(first))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Corpus:
    """The distinct passages of the document files, in document order, and their distinct texts."""

    passage_ids: np.ndarray  # (P,)
    tokens: Ragged  # (U,) texts, U <= P
    text_of: np.ndarray  # (P,) which text a passage has

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Corpus:
        order = distinct_documents(tables)
        _, first, text_of = np.unique(column(tables, "text_hash")[order], return_index=True, return_inverse=True)
        return cls(
            passage_ids=column(tables, "passage_id")[order],
            tokens=Ragged(_arrays(tables, "tokens"), order[first]),
            text_of=text_of,
        )

    def __len__(self) -> int:
        return len(self.passage_ids)


def input_order(tables: Sequence[pa.Table]) -> np.ndarray:
    """(N,) numbers of the rows of all tables, one after the other, in the order of the input."""
    return np.lexsort([column(tables, name) for name in reversed(PLACE)])


def first_of_question(tables: Sequence[pa.Table], order: np.ndarray) -> np.ndarray:
    """Places in `order` at which another question begins: a question with several golds has several rows."""
    place = np.stack([column(tables, name)[order] for name in ("file", "line", "question_item")], axis=1)
    return np.flatnonzero(np.concatenate([[True], np.any(place[1:] != place[:-1], axis=1)]))


def distinct_documents(tables: Sequence[pa.Table]) -> np.ndarray:
    """Numbers of the rows to keep, in document order: of a passage that comes twice, the first."""
    order = input_order(tables)
    _, first = np.unique(column(tables, "passage_id")[order], return_index=True)
    return order[np.sort(first)]


def column(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """One numeric column over all tables, in table order."""
    return _concat([table[name].to_numpy() for table in tables])


def _arrays(tables: Sequence[pa.Table], name: str) -> list[pa.ListArray]:
    return [chunk for table in tables for chunk in table[name].chunks]


def _concat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
