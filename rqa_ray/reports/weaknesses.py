"""Finds what a model is worse at than other rankings of the same questions: metrics, and kinds of questions.

Among many tests, some find a loss by chance. So the tests of kinds of questions are corrected together (Holm 1979).
All questions of a split are tested as in the report of a run, without a correction.

Q questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.confidence import SIGNIFICANCE, Difference, paired_difference
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.reports.kinds import kinds_of_questions


@dataclass(frozen=True)
class Weakness:
    """Questions for which a metric of the model is lower than that of a rival."""

    rival: str
    split: str
    questions: str  # which of the split, such as "all" or "words of the question: over 20"
    number: int  # of these questions
    metric: str  # of `LABELS`
    rival_value: float
    value: float
    change: Difference


def against_bm25(compared: Mapping[str, Comparison], documents: Documents, found: Evaluation) -> dict[str, Comparison]:
    """Compares BM25 with the later model of each split; leaves out splits for which BM25's ranking is not known."""
    rankings = {split: found.splits[split].of_bm25 for split in compared}
    return {
        split: Comparison.of(compared[split].asked, documents, bm25.positions, compared[split].positions[1])
        for split, bm25 in rankings.items()
        if bm25
    }


def weaknesses(rivals: Mapping[str, Mapping[str, Comparison]]) -> list[Weakness]:
    """Returns what the later model of the comparisons is worse at by more than chance.

    `rivals` are comparisons by the name of the earlier model and by split.
    """
    of_all: list[Weakness] = []
    of_kinds: list[Weakness] = []
    tests = 0
    for rival, compared in rivals.items():
        for split, comparison in compared.items():
            of_all += _losses(rival, split, "all", None, comparison, tuple(LABELS))
            for grouping, _, groups in kinds_of_questions(comparison.asked):
                for name, rows in groups.items():
                    tests += len(HEADLINES)
                    of_kinds += _losses(rival, split, f"{grouping}: {name}", rows, comparison, HEADLINES)
    found = [loss for loss in of_all if loss.change.is_beyond_noise]
    for place, loss in enumerate(sorted(of_kinds, key=lambda loss: loss.change.p_value)):
        if loss.change.p_value > SIGNIFICANCE / (tests - place):
            break
        found += [loss] if loss.change.is_beyond_noise else []
    return found


def _losses(
    rival: str, split: str, questions: str, rows: np.ndarray | None, compared: Comparison, labels: tuple[str, ...]
) -> Iterator[Weakness]:
    """Yields the metrics whose mean over the questions at some places, or over all, is below the rival's, tested."""
    for label in labels:
        before, after = (of[LABELS[label]] if rows is None else of[LABELS[label]][rows] for of in compared.values)
        if after.mean() < before.mean():  # the test takes long
            change = compared.change(label) if rows is None else _change(before, after, rows, compared)
            means = float(before.mean()), float(after.mean())
            yield Weakness(rival, split, questions, len(before), label, *means, change)


def _change(before: np.ndarray, after: np.ndarray, rows: np.ndarray, compared: Comparison) -> Difference:
    clusters = np.unique(compared.asked.clusters.labels[rows], return_inverse=True)[1]
    return paired_difference(before, after, clusters)
