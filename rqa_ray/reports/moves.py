"""Lists the questions that one model answers better or worse than another, with golds and what is ranked above them.

Q questions, K ranked passages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from rqa_ray.data.schema import Document
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.reports.pages import cut, visible

MOST = 100  # questions of one listing
MOST_ABOVE = 3  # passages that are listed above a gold
MOST_GOLDS = 3  # golds of a question that are listed
MOST_CHARACTERS = 600  # of a text that is listed
MOST_BYTES = 2_000_000  # of all listings of a page
RANKED_BY = "nDCG@10"  # of `LABELS`; its change says how much a question was won or lost


@dataclass(frozen=True)
class Found:
    """What one model has found for the questions."""

    system: str  # name of the model, such as "after" or "bm25"
    values: Mapping[str, np.ndarray]  # (Q,) by metric, from `question_metrics`
    positions: np.ndarray | None = None  # (Q, K) places in the corpus, best first; None if only the values are known


@dataclass(frozen=True)
class Passages:
    """The passages of the corpus."""

    ids: np.ndarray  # (P,)
    document: Callable[[int], Mapping[str, Any]]  # returns the document at a position


@dataclass(frozen=True)
class Move:
    """A question, and what was found for it; texts may be cut."""

    question: str
    ranks: dict[str, int | None]  # of the first gold by model, from 1; None if it was not found
    golds: list[str]  # at most `MOST_GOLDS`
    num_golds: int
    above: list[str]  # the first passages that the model of the page ranks above the first gold

    @property
    def num_bytes(self) -> int:
        """Size of the texts on a page."""
        return sum(len(escape(visible(text)).encode()) for text in (self.question, *self.golds, *self.above))


@dataclass(frozen=True)
class Listing:
    """Questions of one kind; only the most telling are listed."""

    title: str
    moves: list[Move]  # at most `MOST`, the most telling first
    number: int  # of all questions of this kind


@dataclass(frozen=True)
class Questions:
    """Makes the listings of one split; the listings of all splits of a page share `MOST_BYTES`."""

    asked: AskedQuestions
    passages: Passages
    num_listings: int  # of the page

    def won_and_lost(self, before: Found, after: Found, won: str, lost: str) -> list[Listing]:
        """Returns two listings with these titles: what the later model answers worse, and what it answers better."""
        change = after.values[LABELS[RANKED_BY]] - before.values[LABELS[RANKED_BY]]
        order = np.argsort(-change, kind="stable")
        losses, gains = order[change[order] < 0][::-1], order[change[order] > 0]
        return [self._listing(lost, losses, (before, after)), self._listing(won, gains, (before, after))]

    def missed(self, title: str, found: Found, others: Sequence[Found]) -> Listing:
        """Returns the questions of which the model has not all golds on top; first those that most others answer."""
        metric, finer = LABELS[HEADLINES[0]], LABELS[RANKED_BY]
        rows = np.flatnonzero(found.values[metric] == 0)
        answered = sum((other.values[metric][rows] for other in others), np.zeros(len(rows)))
        order = np.lexsort([found.values[finer][rows], -answered])
        return self._listing(title, rows[order], (*others, found))

    def _listing(self, title: str, rows: np.ndarray, found: Sequence[Found]) -> Listing:
        moves = self._within(MOST_BYTES // self.num_listings, (self._move(int(row), found) for row in rows[:MOST]))
        return Listing(title, moves, len(rows))

    @staticmethod
    def _within(most: int, moves: Iterable[Move]) -> list[Move]:
        """Returns the first moves that together have at most so many bytes."""
        taken = []
        for move in moves:
            most -= move.num_bytes
            if most < 0:
                break
            taken.append(move)
        return taken

    def _move(self, row: int, found: Sequence[Found]) -> Move:
        ranks = {of.system: self._rank(of.positions[row], row) for of in found if of.positions is not None}
        after = found[-1].positions
        assert after is not None
        rank = ranks[found[-1].system]
        above = after[row][: min(MOST_ABOVE, len(after[row]) if rank is None else rank - 1)]
        return Move(
            question=_short(self.asked.questions[row]),
            ranks=ranks,
            golds=[_short(gold.fmt_content) for gold in self.asked.gold_docs(row)[:MOST_GOLDS]],
            num_golds=len(self.asked.gold_ids[row]),
            above=[_short(Document(**self.passages.document(int(position))).fmt_content) for position in above],
        )

    def _rank(self, positions: np.ndarray, row: int) -> int | None:
        places = np.flatnonzero(np.isin(self.passages.ids[positions], self.asked.gold_ids[row]))
        return int(places[0]) + 1 if len(places) else None


def _short(text: str) -> str:
    return cut(text, MOST_CHARACTERS)
