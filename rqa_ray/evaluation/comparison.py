"""Compares the rankings of two models for the same questions; what several readers need is computed once.

Q questions, K ranked passages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rqa_ray.evaluation.confidence import Difference, intervals, paired_difference
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions, Documents


@dataclass(frozen=True)
class Comparison:
    """What two models have found for the questions of one split, the earlier model first."""

    asked: AskedQuestions
    positions: tuple[np.ndarray, np.ndarray]  # (Q, K) places in the corpus, best first
    values: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # (Q,) by metric, from `question_metrics`
    _tested: dict[str, Difference] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, asked: AskedQuestions, documents: Documents, before: np.ndarray, after: np.ndarray) -> Comparison:
        """Compares two rankings, as positions (Q, K)."""
        old, new = (question_metrics(documents.passage_ids[found], asked.gold_ids) for found in (before, after))
        return cls(asked, (before, after), (old, new))

    @cached_property
    def changes(self) -> dict[str, Difference]:
        """What each of the metrics `HEADLINES` has gained, by label."""
        return {label: self.change(label) for label in HEADLINES}

    def change(self, label: str) -> Difference:
        """Returns what a metric of `LABELS` has gained; tests once, because a test takes long."""
        if label not in self._tested:
            old, new = (of[LABELS[label]] for of in self.values)
            self._tested[label] = paired_difference(old, new, self.asked.clusters.labels)
        return self._tested[label]

    @cached_property
    def intervals(self) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
        """The 95% intervals of the metrics of both models, by metric."""
        old, new = (intervals(of, self.asked.clusters.labels) for of in self.values)
        return old, new
