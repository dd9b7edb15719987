"""What jobs/evaluate.py has found with each retriever, compared with the retriever that was asked for.

Shapes: Q questions, K retrieved passages per question, P passages of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rqa_ray.evaluation.confidence import INTERVALS, Difference, intervals, paired_difference
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, LATENCY
from rqa_ray.evaluation.predictions import AskedQuestions

SPLIT = "test"


@dataclass
class Result:
    """The result of one retriever."""

    values: dict[str, np.ndarray]  # (Q,) values by metric, from `question_metrics`
    ranking: tuple[np.ndarray, np.ndarray] | None = None  # scores and positions (Q, K)
    latency: float | None = None  # seconds a question
    weight: float | None = None  # weight of the embeddings in a hybrid

    def metrics(self, clusters: np.ndarray) -> dict[str, Any]:
        """Metrics by full name, with intervals."""
        named = {f"{SPLIT}_{name}": float(values.mean()) for name, values in self.values.items()}
        named |= {} if self.latency is None else {f"{SPLIT}_{LATENCY}": self.latency}
        around = {f"{SPLIT}_{name}": ends for name, ends in intervals(self.values, clusters).items()}
        return {**named, **({} if self.weight is None else {"weight": self.weight}), INTERVALS: around}


@dataclass(frozen=True)
class Evaluated:
    """The results of all retrievers; the first is the one that was asked for, and has a ranking."""

    asked: AskedQuestions
    passage_ids: np.ndarray  # (P,)
    document: Callable[[int], dict[str, Any]]  # returns the document at a position that the first results rank high
    results: Mapping[str, Result]  # by retriever, or by the folder of an earlier run
    facts: Mapping[str, str]  # about the evaluation, for people

    @cached_property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Metrics with intervals, by retriever and full name."""
        return {name: result.metrics(self.asked.clusters.labels) for name, result in self.results.items()}

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """What the other retrievers gain over the first, by retriever and label."""
        (_, base), *others = self.results.items()
        clusters = self.asked.clusters.labels
        return {
            name: {
                label: paired_difference(base.values[LABELS[label]], result.values[LABELS[label]], clusters)
                for label in HEADLINES
            }
            for name, result in others
        }

    def describe(self) -> list[str]:
        """Returns lines that say what the others gain over the first, and whether this is more than chance."""
        first = next(iter(self.results))
        return [
            f"{name} against {first}, {label}: {change.describe()}"
            for name, changes in self.differences.items()
            for label, change in changes.items()
        ]


def of_cut(scores: Mapping[str, dict[str, Any]]) -> list[str]:
    """Returns a line for each number of dimensions to which embeddings were cut, with 95% intervals."""
    parts: dict[str, list[str]] = {}
    for retriever, metrics in scores.items():
        for label in HEADLINES:
            start = f"{SPLIT}_{LABELS[label]}_dim"
            for name in (name for name in metrics if name.startswith(start)):
                low, high = metrics[INTERVALS][name]
                said = f"{label} {metrics[name]:.3f}  {low:.3f} to {high:.3f}"
                parts.setdefault(f"{retriever}, cut to {name.removeprefix(start)} dimensions", []).append(said)
    return [f"{what}: {', '.join(said)}" for what, said in parts.items()]


# Writes the report about an evaluation into a folder, whose files go to another folder; returns a line for the user.
WriteReport = Callable[[Path, str, Evaluated], str]
