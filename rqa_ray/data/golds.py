"""The golds of questions, and the grade of each gold: how well the passage answers the question.

N is the number of questions, G the number of golds of all questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rqa_ray.data.columns import concat, runs

GoldIds = Sequence[Sequence[int] | np.ndarray]  # the golds of each question


@dataclass
class Golds(Sequence):
    """The golds of each question: the golds of all rows whose question has the same wording."""

    ids: np.ndarray  # (G,) one question after the other
    offsets: np.ndarray  # (N + 1,)
    grades: np.ndarray | None = None  # (G,) above 0; None if all are 1

    @classmethod
    def of(cls, question_keys: np.ndarray, passage_ids: np.ndarray, grades: np.ndarray | None = None) -> Golds:
        """Makes golds from parallel arrays (N,) of question keys, gold passage ids and grades; sorted within a row.

        If a gold of a question has several grades, the highest counts.
        """
        grades = None if grades is None or (grades == 1).all() else grades
        order = np.lexsort([passage_ids, question_keys] if grades is None else [-grades, passage_ids, question_keys])
        keys, ids = question_keys[order], passage_ids[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (keys[1:] != keys[:-1]) | (ids[1:] != ids[:-1])
        order, ids = order[is_new], ids[is_new]
        distinct, first, counts = np.unique(keys[is_new], return_index=True, return_counts=True)
        group = np.searchsorted(distinct, question_keys)
        places, offsets = runs(first[group], counts[group])
        return cls(ids[places], offsets, None if grades is None else grades[order[places]])

    @classmethod
    def of_lists(cls, lists: GoldIds) -> Golds:
        """Makes golds of grade 1 from a list of ids for each question; an id that is repeated counts once."""
        rows = [np.unique(np.asarray(ids, np.int64)) for ids in lists]
        return cls(concat(rows), np.cumsum([0, *map(len, rows)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def grades_of(self, row: int) -> dict[int, float]:
        """Returns the golds of a question, and their grades."""
        ids = self[row].tolist()
        grades = [1.0] * len(ids) if self.grades is None else self.grades[self.offsets[row] : self.offsets[row + 1]]
        return dict(zip(ids, map(float, grades), strict=True))

    def num_with(self, passage_ids: np.ndarray) -> int:
        """Returns how many questions have a gold among the passages."""
        questions = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return len(np.unique(questions[np.isin(self.ids, passage_ids)]))

    def select(self, rows: np.ndarray) -> Golds:
        """Returns the golds of some questions, in their order."""
        places, offsets = runs(self.offsets[rows], np.diff(self.offsets)[rows])
        return Golds(self.ids[places], offsets, None if self.grades is None else self.grades[places])
