"""Compares the rankings of two models for the same questions; what several readers need is computed once.

Q questions, K ranked passages.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    @classmethod
    def of(cls, asked: AskedQuestions, documents: Documents, before: np.ndarray, after: np.ndarray) -> Comparison:
        """Compares two rankings, as positions (Q, K)."""
        old, new = (question_metrics(documents.passage_ids[found], asked.gold_ids) for found in (before, after))
        return cls(asked, (before, after), (old, new))

    @cached_property
    def changes(self) -> dict[str, Difference]:
        """What each of the metrics `HEADLINES` has gained, by label."""
        old, new = self.values
        clusters = self.asked.clusters.labels
        return {label: paired_difference(old[LABELS[label]], new[LABELS[label]], clusters) for label in HEADLINES}

    @cached_property
    def intervals(self) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
        """The 95% intervals of the metrics of both models, by metric."""
        old, new = (intervals(of, self.asked.clusters.labels) for of in self.values)
        return old, new
