"""Tokenized data in the form that workers use: training pairs, evaluation questions, a corpus; made from Arrow blocks.

N is the number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import Ragged, arrays, column, concat, inner_places, input_order
from rqa_ray.data.distinct import first_places
from rqa_ray.data.golds import Golds
from rqa_ray.data.passages import Negatives, PassageTable
from rqa_ray.data.share import Share


@dataclass
class TrainingRows:
    """The training pairs: one row for each question and gold passage, which names its passages by id."""

    questions: Ragged  # token rows
    passage_ids: np.ndarray  # (N,) ids of the golds
    golds: Golds
    table: PassageTable  # all golds and all hard negatives of the files
    negatives: Negatives
    pairs: np.ndarray  # (N,) the number of each pair in the order of the whole input

    def __post_init__(self) -> None:
        self.passages = self.table.tokens.take(self.table.rows_of(self.passage_ids))  # (N,) the golds' token rows

    @classmethod
    def from_tables(
        cls, tables: Sequence[pa.Table], order: np.ndarray | None = None, pairs: np.ndarray | None = None
    ) -> TrainingRows:
        """Makes rows from blocks of `token_tables.SCHEMAS["train"]`, in the order of the input or in another order.

        `pairs` are the numbers of the rows in the whole input, if the blocks are only a part of it.
        """
        first = input_order(tables)
        order = first if order is None else order
        ids = column(tables, "passage_id")[order]
        new, _ = inner_places(tables, "new_passage_ids", first)
        new_tokens = Ragged([array.values for array in arrays(tables, "new_passage_tokens")], new)
        table = PassageTable.of(_values(tables, "new_passage_ids")[new], new_tokens)
        places, offsets = inner_places(tables, "hard_negative_ids", order)
        negative_ids = _values(tables, "hard_negative_ids")[places]
        scores = _values(tables, "hard_negative_scores")[places]
        is_scored = not np.isnan(scores).all()
        gold_scores = column(tables, "gold_score")[order].astype(np.float32)
        return cls(
            questions=Ragged(arrays(tables, "question_tokens"), order),
            passage_ids=ids,
            golds=Golds.of(column(tables, "question_key")[order], ids),
            table=table,
            negatives=Negatives.of(table, negative_ids, offsets, *((scores, gold_scores) if is_scored else ())),
            pairs=np.arange(len(ids)) if pairs is None else pairs,
        )

    @classmethod
    def of_share(cls, tables: Sequence[pa.Table], share: Share) -> TrainingRows:
        """Makes the rows of a share of the pairs; they are numbered as if the blocks had no others."""
        return cls.from_tables(tables, input_order(tables)[share.numbers(tables)])

    def __len__(self) -> int:
        return len(self.passage_ids)


@dataclass
class Questions:
    """The questions of an evaluation file; a question that the file asks twice is here twice."""

    tokens: Ragged
    golds: Golds

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Questions:
        order = input_order(tables)
        first = first_of_question(tables, order)
        return cls(Ragged(arrays(tables, "question_tokens"), order[first]), graded_golds(tables, order).select(first))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Corpus:
    """The distinct passages of the document files, in document order, and their distinct texts."""

    passage_ids: np.ndarray  # (P,)
    tokens: Ragged  # (U,) texts, U <= P
    text_of: np.ndarray  # (P,) the number of each passage's text

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Corpus:
        order = distinct_documents(tables)
        _, first, text_of = np.unique(column(tables, "text_hash")[order], return_index=True, return_inverse=True)
        return cls(
            passage_ids=column(tables, "passage_id")[order],
            tokens=Ragged(arrays(tables, "tokens"), order[first]),
            text_of=text_of,
        )

    def __len__(self) -> int:
        return len(self.passage_ids)

    @property
    def table(self) -> PassageTable:
        """The tokens of all passages by id."""
        return PassageTable.of(self.passage_ids, self.tokens.take(self.text_of))


def fingerprint(questions: Questions, corpus: Corpus) -> str:
    """Returns a short text that is another one where questions, golds, grades or passages are others."""
    made = hashlib.blake2b(digest_size=8)
    golds = questions.golds
    parts = [corpus.passage_ids, corpus.text_of, corpus.tokens.lengths, golds.ids, golds.offsets]
    grades = [] if golds.grades is None else [golds.grades]  # none, so that results of earlier versions stay known
    for part in [*parts, questions.tokens.lengths, *questions.tokens, *grades]:
        made.update(np.ascontiguousarray(part).data)
    return made.hexdigest()


def graded_golds(tables: Sequence[pa.Table], order: np.ndarray) -> Golds:
    """Returns the golds of some rows of `token_tables.SCHEMAS["questions"]`, with their grades."""
    columns = (column(tables, name)[order] for name in ("question_key", "passage_id", "gold_grade"))
    return Golds.of(*columns)


def first_of_question(tables: Sequence[pa.Table], order: np.ndarray) -> np.ndarray:
    """Returns the places in `order` where another question begins; a question with several golds has several rows."""
    place = np.stack([column(tables, name)[order] for name in ("file", "line", "question_item")], axis=1)
    return np.flatnonzero(np.concatenate([[True], np.any(place[1:] != place[:-1], axis=1)]))


def distinct_documents(tables: Sequence[pa.Table]) -> np.ndarray:
    """Returns the numbers of the rows to keep, in document order: the first row of each passage."""
    order = input_order(tables)
    return order[first_places(column(tables, "passage_id")[order])]


def _values(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """Returns the inner values that `inner_places` counts; NaN for a null."""
    return concat([array.values.to_numpy(zero_copy_only=False) for array in arrays(tables, name)])
