"""Groups the questions of a split by kind, such as by their length, with the metrics of each group.

Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from rqa_ray.data.schema import Document
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.reports.moves import Found

MOST_NAME = 60  # characters of the name of a group
MOST_GROUPS = 8  # groups of a kind, the largest ones
LENGTHS = {5: "1 to 5", 10: "6 to 10", 20: "11 to 20"}  # names of groups by the most words of a question
LONGEST = "over 20"


@dataclass(frozen=True)
class Group:
    """The questions of one kind, and the means of `HEADLINES` by label, for each model."""

    name: str
    number: int
    means: list[dict[str, float]]


@dataclass(frozen=True)
class Grouping:
    """One way to group the questions, such as by their length."""

    name: str
    groups: list[Group]  # the largest ones
    number: int  # of all groups
    labels: tuple[str, ...] = HEADLINES


def groupings(asked: AskedQuestions, found: Sequence[Found]) -> list[Grouping]:
    """Returns the metrics of each kind of questions."""
    return [
        Grouping(name, [_group(group, rows, found) for group, rows in groups.items()], number)
        for name, number, groups in kinds_of_questions(asked)
    ]


def kinds_of_questions(asked: AskedQuestions) -> list[tuple[str, int, dict[str, np.ndarray]]]:
    """Groups the questions by length, number of golds and source; leaves out what has only one group.

    Returns of each grouping its name, the number of its groups, and the places of the questions of the largest groups.
    """
    keys = {
        "words of the question": [_length(question) for question in asked.questions],
        "golds of the question": [_number(len(golds)) for golds in asked.gold_ids],
        "source of the gold": [_source(asked.gold_docs(row)[0]) for row in range(len(asked.questions))],
    }
    kinds = []
    for name, of_questions in keys.items():
        names, rows, counts = np.unique(of_questions, return_inverse=True, return_counts=True)
        if 1 < len(names) <= len(of_questions) / 2:
            largest = np.argsort(-counts, kind="stable")[:MOST_GROUPS].tolist()
            largest.sort(key=lambda place: _order(str(names[place])))
            groups = {str(names[place]): np.flatnonzero(rows == place) for place in largest}
            kinds.append((name, len(names), groups))
    return kinds


def _group(name: str, rows: np.ndarray, found: Sequence[Found]) -> Group:
    """Returns the group of the questions at some places."""
    means = [{label: float(of.values[LABELS[label]][rows].mean()) for label in HEADLINES} for of in found]
    return Group(name, len(rows), means)


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
