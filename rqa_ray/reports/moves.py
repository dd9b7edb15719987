"""Compares the rankings of two models question by question: which questions were won and lost, and of what kind.

Q questions, K ranked passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from rqa_ray.data.schema import Document
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import Documents

MOST = 100  # questions that are listed as won, and as lost
MOST_ABOVE = 3  # passages that are listed above a gold
MOST_GOLDS = 3  # golds of a question that are listed
MOST_NAME = 60  # characters of the name of a group
MOST_CHARACTERS = 600  # of a text that is listed
MOST_GROUPS = 8  # groups of a kind, the largest ones
LENGTHS = {5: "1 to 5", 10: "6 to 10", 20: "11 to 20"}  # names of groups by the most words of a question
LONGEST = "over 20"
RANKED_BY = "nDCG@10"  # of `LABELS`; its change says how much a question was won or lost


@dataclass(frozen=True)
class Move:
    """A question that a model answers better or worse than another, with texts that may be cut."""

    question: str
    change: float  # of nDCG@10
    ranks: tuple[int | None, int | None]  # of the first gold before and after, from 1; None if it was not found
    golds: list[str]  # at most `MOST_GOLDS`
    num_golds: int
    above: list[str]  # the first passages that the later model ranks above the first gold


@dataclass(frozen=True)
class Group:
    """The questions of one kind, and the means of `HEADLINES` before and after, by label."""

    name: str
    number: int
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Grouping:
    """One way to group the questions, such as by their length."""

    name: str
    groups: list[Group]  # the largest ones
    number: int  # of all groups


@dataclass(frozen=True)
class Moves:
    """What changed on one split."""

    won: list[Move]  # at most `MOST`, the largest gain first
    lost: list[Move]
    num_won: int
    num_lost: int
    groupings: list[Grouping]

    @classmethod
    def of(cls, compared: Comparison, documents: Documents) -> Moves:
        """Lists what changed between two rankings of the documents."""
        asked, after = compared.asked, compared.positions[1]
        old, new = compared.values
        change = new[LABELS[RANKED_BY]] - old[LABELS[RANKED_BY]]
        order = np.argsort(-change, kind="stable")
        won, lost = order[change[order] > 0], order[change[order] < 0][::-1]
        ranks = [_first_ranks(documents.passage_ids[found], asked.gold_ids) for found in compared.positions]

        def move(row: int) -> Move:
            rank = ranks[1][row]
            above = after[row][: min(MOST_ABOVE, len(after[row]) if rank is None else rank - 1)]
            return Move(
                question=_short(asked.questions[row]),
                change=float(change[row]),
                ranks=(ranks[0][row], rank),
                golds=[_short(gold.fmt_content) for gold in asked.gold_docs(row)[:MOST_GOLDS]],
                num_golds=len(asked.gold_ids[row]),
                above=[_short(Document(**documents.document(int(position))).fmt_content) for position in above],
            )

        listed = [[move(int(row)) for row in rows[:MOST]] for rows in (won, lost)]
        return cls(listed[0], listed[1], len(won), len(lost), _groupings(compared))


def _first_ranks(ranked_ids: np.ndarray, gold_ids: Sequence[Sequence[int]]) -> list[int | None]:
    ranks: list[int | None] = []
    for ids, golds in zip(ranked_ids, gold_ids, strict=True):
        places = np.flatnonzero(np.isin(ids, list(golds)))
        ranks.append(int(places[0]) + 1 if len(places) else None)
    return ranks


def _groupings(compared: Comparison) -> list[Grouping]:
    """Groups the questions by length, number of golds and source; leaves out what has only one group."""
    asked = compared.asked
    keys = {
        "words of the question": [_length(question) for question in asked.questions],
        "golds of the question": [_number(len(golds)) for golds in asked.gold_ids],
        "source of the gold": [_source(asked.gold_docs(row)[0]) for row in range(len(asked.questions))],
    }
    groupings = []
    for name, of_questions in keys.items():
        names, rows, counts = np.unique(of_questions, return_inverse=True, return_counts=True)
        if 1 < len(names) <= len(of_questions) / 2:
            largest = np.argsort(-counts, kind="stable")[:MOST_GROUPS].tolist()
            largest.sort(key=lambda place: _order(str(names[place])))
            groups = [_group(str(names[place]), rows == place, compared) for place in largest]
            groupings.append(Grouping(name, groups, len(names)))
    return groupings


def _group(name: str, rows: np.ndarray, compared: Comparison) -> Group:
    means = ({label: float(of[LABELS[label]][rows].mean()) for label in HEADLINES} for of in compared.values)
    before, after = means
    return Group(name, int(rows.sum()), before, after)


def _length(question: str) -> str:
    words = len(question.split())
    return next((name for most, name in LENGTHS.items() if words <= most), LONGEST)


def _order(name: str) -> tuple[int, str]:
    """Returns by what groups are sorted: lengths from short to long, others by name."""
    lengths = [*LENGTHS.values(), LONGEST]
    return (lengths.index(name) if name in lengths else 0, name)


def _number(golds: int) -> str:
    return str(golds) if golds < 3 else "3 or more"


def _source(gold: Document) -> str:
    """Returns the host or the first folder of the source of a passage."""
    source = str(gold.metadata.get("source") or "none")
    try:
        parts = urlsplit(source)
    except ValueError:  # a source is free text, such as http://[bad
        return source[:MOST_NAME]
    return (parts.netloc or parts.path.strip("/").partition("/")[0] or source)[:MOST_NAME]


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
