"""Says before training how large a gain has to be, so that the questions can show it: a power analysis; numpy only.

A gain is shown if the paired test by clusters (`confidence.py`) finds p < 0.05. The smallest gain is the gain that the
test shows in 80% of all runs. It depends on the variance of the questions' gains. Before training, only the values V
of the pretrained model are known:

* The variance of the gains is taken as 2 (1 - 0.6) times that of V: 0.6 is the correlation of a question's value
  before and after training. 14 runs of all-MiniLM-L6-v2 on Faire and MedQuAD had correlations of 0.26 to 0.82 in
  recall@4 and nDCG@10 of eval and test; the standard deviation of the gains was 0.58 to 1.02 of that of V, in the
  middle 0.88. The correlation 0.6 means 0.89.
* Questions of a cluster repeat each other: Q questions count as Q / D. D = 1 + I (m - 1) is Kish's design effect, m
  the mean size of a question's cluster, and I the intraclass correlation of the gains, taken as 0.6 of that of V.
* The test needs 6 clusters that gain and none that loses for p < 0.05, because 2 / 2^6 < 0.05. Chance gives 6 or more
  in 80% of all runs if 7.9 are expected.

`tests/evaluation/test_power.py` simulates evaluations in 7 settings. Of 2,100 runs in each setting, 75 to 82% show the
smallest gain (79% on average), and 3 to 6% of the runs without a gain show one (4% on average). The gains of the 14
runs above, moved to the mean of the smallest gain and resampled by clusters, are shown in 84% of all cases: in 58% on
MedQuAD's eval in recall@4, and in 95% on Faire's eval in recall@4.

Shapes: Q questions, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rqa_ray.evaluation.confidence import SIGNIFICANCE, effective_number
from rqa_ray.evaluation.metrics import HEADLINES, LABELS

POWER = 80  # how often a run shows the gain (percent)
CORRELATION = 0.6  # of a question's value before and after training
SHARED = 0.6  # intraclass correlation of the gains, as a share of that of the values
FEWEST_CLUSTERS = 6  # fewest clusters with which the test can find p < 0.05
FEWEST_GAINS = 7.9  # clusters that gain on average, where none loses


@dataclass
class AskedSplit:
    """What is known about the questions of one split before training."""

    name: str
    values: Mapping[str, np.ndarray]  # (Q,) values of the pretrained model by metric, from `question_metrics`
    clusters: np.ndarray  # (Q,) the cluster of each question, from 0


def smallest_gain(values: np.ndarray, clusters: np.ndarray) -> float | None:
    """Returns the smallest gain of a mean over (Q,) values from 0 to 1; None if no gain that is possible can be shown.

    values: of the pretrained model.
    """
    if len(np.unique(clusters)) < FEWEST_CLUSTERS:
        return None
    effective = len(values) / _design_effect(values, clusters)
    variance = 2 * (1 - CORRELATION) * float(values.var())  # of the questions' gains
    is_binary = bool(np.isin(values, (0, 1)).all())
    # Where a question gains 1, loses 1, or stays, the variance is about the share of the questions that change.
    degrees = max((len(values) * variance if is_binary else effective_number(clusters)) - 1, 1)
    spread = _t_quantile(1 - SIGNIFICANCE / 2, degrees) + _t_quantile(POWER / 100, degrees)
    gain = max(spread * math.sqrt(variance / effective), FEWEST_GAINS / effective if is_binary else 0)
    return gain if gain <= 1 - values.mean() else None


def describe_power(splits: list[AskedSplit]) -> str:
    """Returns the line about the smallest gains of all splits in the metrics by which runs are compared."""
    parts = []
    for split in splits:
        gains = [(label, smallest_gain(split.values[LABELS[label]], split.clusters)) for label in HEADLINES]
        said = " and ".join(f"{label} {'none' if gain is None else f'{100 * gain:+.1f}'}" for label, gain in gains)
        parts.append(f"{said} on {len(split.clusters):,} {split.name} questions")
    return f"smallest gain that a test can show, in points ({POWER}% power): {'; '.join(parts)}"


def _design_effect(values: np.ndarray, clusters: np.ndarray) -> float:
    """Returns by which factor clusters raise the variance of a mean; at least 1.

    The intraclass correlation is that of the analysis of variance (Donner 1986).
    """
    sizes = np.bincount(clusters)
    num_questions, num_clusters = len(values), len(sizes)
    if num_clusters in (1, num_questions):
        return 1.0
    means = np.bincount(clusters, values) / sizes
    within = float(((values - means[clusters]) ** 2).sum()) / (num_questions - num_clusters)
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (num_clusters - 1)
    size_of_question = float((sizes**2).sum()) / num_questions  # mean size of a question's cluster
    size = (num_questions - size_of_question) / (num_clusters - 1)
    total = between + (size - 1) * within
    correlation = min(max((between - within) / total, 0.0), 1.0) if total > 0 else 0.0
    return 1 + SHARED * correlation * (size_of_question - 1)


def _t_quantile(probability: float, degrees: float) -> float:
    """Returns Student's quantile by the first terms of its expansion (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
