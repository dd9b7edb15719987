"""Passages named by id: the table of their tokens, and the hard negatives that pairs name from it.

P is the number of passages of a table, N of pairs, M of the hard negatives of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rqa_ray.data.columns import Ragged, runs


@dataclass
class PassageTable:
    """Distinct passages. A pair names its passages by id; their tokens stand here, each once."""

    ids: np.ndarray  # (P,) sorted
    tokens: Ragged  # (P,)

    @classmethod
    def of(cls, ids: np.ndarray, tokens: Ragged) -> PassageTable:
        """From parallel ids and token rows: of an id that comes again, the first."""
        distinct, first = np.unique(ids, return_index=True)
        return cls(distinct, tokens.take(first))

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Which row each id is.

        Raises:
            KeyError: an id is of no passage of this table.
        """
        missing = ids[~np.isin(ids, self.ids)]
        if len(missing):
            raise KeyError(f"{len(missing):,} passage ids, such as {missing[0]}, are not among the {len(self.ids):,}")
        return np.searchsorted(self.ids, ids)


@dataclass
class Negatives:
    """The hard negatives of all pairs, one pair after the other.

    A round is one set of them: round 0 is what the files bring, a later one takes its place while training.
    """

    passages: PassageTable  # that has their tokens: the pairs' own, or a corpus
    ids: np.ndarray  # (M,)
    rows: np.ndarray  # (M,) of the table
    offsets: np.ndarray  # (N + 1,): those of pair i are offsets[i] to offsets[i + 1]
    scores: np.ndarray | None = None  # (M,) a teacher's, NaN where it gave none
    round: int = 0

    @classmethod
    def of(
        cls,
        passages: PassageTable,
        ids: np.ndarray,
        offsets: np.ndarray,
        scores: np.ndarray | None = None,
        round: int = 0,
    ) -> Negatives:
        """From ids that are in the table (`PassageTable.rows_of` raises KeyError for one that is not)."""
        return cls(passages, ids, passages.rows_of(ids), offsets, scores, round)

    @property
    def num_pairs(self) -> int:
        return len(self.offsets) - 1

    def of_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """Numbers of the hard negatives of some pairs, one pair after the other."""
        return runs(self.offsets[pairs], self.offsets[pairs + 1] - self.offsets[pairs])[0]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of some of them."""
        return self.passages.tokens.lengths[self.rows[numbers]]

    def tokens(self, number: int) -> np.ndarray:
        """The token row of one."""
        return self.passages.tokens[self.rows[number]]
