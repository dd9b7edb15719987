"""Holds passages by id: a table with their tokens, and the hard negatives that pairs name from this table.

P is the number of passages in a table, N the number of pairs, M the number of hard negatives of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rqa_ray.data.columns import Ragged, runs

if TYPE_CHECKING:
    from rqa_ray.retriever.distillation import TeacherScores


@dataclass
class PassageTable:
    """Distinct passages with their tokens.

    Pairs name passages by id, so the tokens of each passage are stored once.
    """

    ids: np.ndarray  # (P,) sorted
    tokens: Ragged  # (P,)

    @classmethod
    def of(cls, ids: np.ndarray, tokens: Ragged) -> PassageTable:
        """Makes a table from parallel ids and token rows; of several rows with one id, the first counts."""
        distinct, first = np.unique(ids, return_index=True)
        return cls(distinct, tokens.take(first))

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the row of each id.

        Raises:
            KeyError: the table has no passage with one of the ids.
        """
        missing = ids[~np.isin(ids, self.ids)]
        if len(missing):
            raise KeyError(f"{len(missing):,} passage ids, such as {missing[0]}, are not among the {len(self.ids):,}")
        return np.searchsorted(self.ids, ids)


@dataclass
class Negatives:
    """The hard negatives of all pairs, one pair after the other.

    A round is one set of hard negatives. Round 0 comes from the files; a later round replaces it during training.
    """

    passages: PassageTable  # the table with their tokens: the pairs' own, or a corpus
    ids: np.ndarray  # (M,)
    rows: np.ndarray  # (M,) rows in the table
    offsets: np.ndarray  # (N + 1,): pair i has the hard negatives from offsets[i] to offsets[i + 1]
    scores: np.ndarray | None = None  # (M,) scores of a teacher, NaN where there is none
    gold_scores: np.ndarray | None = None  # (N,) scores of the same teacher for the golds of the pairs
    round: int = 0

    @classmethod
    def of(
        cls,
        passages: PassageTable,
        ids: np.ndarray,
        offsets: np.ndarray,
        scores: np.ndarray | None = None,
        gold_scores: np.ndarray | None = None,
        round: int = 0,
    ) -> Negatives:
        """Makes hard negatives from ids in the table; `PassageTable.rows_of` raises KeyError for other ids."""
        return cls(passages, ids, passages.rows_of(ids), offsets, scores, gold_scores, round)

    @property
    def num_pairs(self) -> int:
        return len(self.offsets) - 1

    def of_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the numbers of the hard negatives of some pairs, one pair after the other."""
        return runs(self.offsets[pairs], self.offsets[pairs + 1] - self.offsets[pairs])[0]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Returns how many tokens some hard negatives have."""
        return self.passages.tokens.lengths[self.rows[numbers]]

    def teacher_scores(self, pairs: np.ndarray, golds: np.ndarray) -> TeacherScores | None:
        """Returns the teacher's scores of some pairs' golds (n,) and hard negatives; None if there is no teacher."""
        if self.scores is None:
            return None
        import torch  # Ray's controller imports this file, and no worker starts before

        from rqa_ray.retriever.distillation import TeacherScores

        counts = self.offsets[pairs + 1] - self.offsets[pairs]
        numbers, starts = runs(self.offsets[pairs], counts)
        # the gold stands first, and again behind the hard negatives of a short row
        shape = len(pairs), 1 + int(counts.max(initial=0))
        ids, scores = np.tile(golds[:, None], shape[1]), np.full(shape, np.nan, np.float32)
        if self.gold_scores is not None:
            scores[:] = self.gold_scores[pairs, None]
        rows = np.repeat(np.arange(len(pairs)), counts)
        places = 1 + np.arange(len(numbers)) - starts[rows]
        ids[rows, places], scores[rows, places] = self.ids[numbers], self.scores[numbers]
        return TeacherScores(torch.from_numpy(ids), torch.from_numpy(scores))

    def tokens(self, number: int) -> np.ndarray:
        """Returns the token row of one hard negative."""
        return self.passages.tokens[self.rows[number]]
