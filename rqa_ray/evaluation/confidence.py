"""Says how far a metric can move by chance: bootstrap intervals, and a paired test of two runs; uses numpy only.

Questions whose golds come from one document tend to be right or wrong together. So whole clusters of such questions
are drawn (cluster bootstrap: Field and Welsh 2007). The paired test flips the signs of the clusters' differences at
random (Fisher's randomization test, which Smucker, Allan and Carterette 2007 recommend for retrieval). Both are
seeded: the same questions give the same numbers.

Shapes: Q questions, C clusters, R resamples, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from rqa_ray.data.golds import GoldIds
from rqa_ray.data.splits import linked

RESAMPLES = 2_000  # resamples of an interval
SIGN_PATTERNS = 10_000  # random sign patterns of a p-value
EXACT_CLUSTERS = 13  # up to 13 clusters have at most 2^13 sign patterns, and all are tried
CELLS_AT_ONCE = 1 << 22  # numbers of an (R, C) array: 32 MB
FEWEST_CLUSTERS = 10  # fewest clusters by source document, counted as clusters of equal size
LEVEL = 95  # level of an interval (percent)
SIGNIFICANCE = 0.05  # largest p-value, exclusive, that speaks against chance
INTERVALS = f"intervals_{LEVEL}"  # name in results files, whose value is [low, high] by metric


@dataclass
class Difference:
    """What a metric gained between two runs on the same questions."""

    mean: float
    low: float  # lower end of the 95% interval
    high: float
    p_value: float  # two-sided

    @property
    def is_beyond_noise(self) -> bool:
        """Whether both the test and the interval speak against chance."""
        return self.p_value < SIGNIFICANCE and (self.low > 0 or self.high < 0)

    def describe(self) -> str:
        """Returns text such as `+12.0 points, 95% interval +4.0 to +20.0, p = 0.004`; says what may be noise."""
        low, high = 100 * self.low, 100 * self.high
        interval = f"{LEVEL}% interval {low:+.1f} to {high:+.1f}"
        noise = "" if self.is_beyond_noise else ": not beyond noise"
        return f"{100 * self.mean:+.1f} points, {interval}, p = {self.p_value:.2g}{noise}"


@dataclass
class Clusters:
    """The clusters of Q questions."""

    labels: np.ndarray  # (Q,) the cluster of each question, from 0
    num_sources: int  # number of clusters by source document
    by_source: bool = True  # False if only questions that share a gold are together

    @classmethod
    def of(cls, gold_ids: GoldIds, source_ids: GoldIds) -> Clusters:
        """Puts the questions of a source document into one cluster.

        If most questions come from a few documents, no test by documents can mean anything. Then only questions that
        share a gold are together.

        source_ids: Q lists of the source documents of the golds.
        """
        by_source, by_gold = gold_clusters(source_ids), gold_clusters(gold_ids)
        num_sources = int(by_source.max()) + 1
        if effective_number(by_source) < min(FEWEST_CLUSTERS, effective_number(by_gold)):
            return cls(by_gold, num_sources, by_source=False)
        return cls(by_source, num_sources)

    @property
    def note(self) -> str:
        """What a reader of intervals and p-values has to know about the number of questions; empty if nothing."""
        if self.by_source:
            return ""
        return f" from only {self.num_sources} source document{'s' * (self.num_sources > 1)}, so clustered by gold"


def effective_number(clusters: np.ndarray) -> float:
    """Returns how many clusters of equal size would weigh as much as these (Kish 1965)."""
    sizes = np.bincount(clusters)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def gold_clusters(gold_ids: GoldIds) -> np.ndarray:
    """Returns (Q,) the cluster of each question, from 0.

    Questions that are linked by shared golds, or whatever else the ids name, share a cluster.
    """
    counts = np.fromiter(map(len, gold_ids), dtype=np.int64)
    questions = np.repeat(np.arange(len(counts)), counts)
    golds = np.fromiter(chain.from_iterable(gold_ids), dtype=np.int64, count=len(questions))
    return linked(questions, golds, len(counts))


def intervals(values: Mapping[str, np.ndarray], clusters: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns the 95% percentile interval of each metric's mean over (Q,) values; resamples whole clusters (Q,)."""
    lows, highs = _ends(_resampled_means(values, clusters))
    return dict(zip(values, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))


def _resampled_means(values: Mapping[str, np.ndarray], clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns (R, M) means of M metrics, each over a resample of whole clusters."""
    totals = np.stack([np.bincount(clusters, part) for part in values.values()], axis=1)  # (C, M)
    sizes = np.bincount(clusters)
    generator, even = np.random.default_rng(seed), np.full(len(sizes), 1 / len(sizes))
    means = []
    for size in _parts(RESAMPLES, len(sizes)):
        draws = generator.multinomial(len(sizes), even, size)  # (R, C) how often each cluster is drawn
        means.append(draws @ totals / (draws @ sizes)[:, None])
    return np.concatenate(means)


def _ends(means: np.ndarray) -> np.ndarray:
    """Returns the lower and the upper ends (2, M) of the intervals of resampled means (R, M)."""
    return np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)


def paired_difference(before: np.ndarray, after: np.ndarray, clusters: np.ndarray) -> Difference:
    """Compares the means of (Q,) values `before` and `after`, question by question.

    Raises:
        ValueError: the values are from different questions.
    """
    if not before.shape == after.shape == clusters.shape:
        raise ValueError(f"the test is paired: got {before.shape} values before and {after.shape} after")
    gains = np.asarray(after, float) - np.asarray(before, float)
    low, high = intervals({"gain": gains}, clusters)["gain"]
    return Difference(float(gains.mean()), low, high, _p_value(np.bincount(clusters, gains)))


def pooled_difference(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Difference:
    """Compares several sets of questions at once; each set counts the same, whatever its size.

    The parts are values before, values after, and clusters, each (Q,). Clusters are resampled inside their set.
    """
    gains = [np.asarray(after, float) - np.asarray(before, float) for before, after, _ in parts]
    resampled = [
        _resampled_means({"gain": gain}, clusters, seed)
        for seed, (gain, (_, _, clusters)) in enumerate(zip(gains, parts, strict=True))
    ]
    low, high = _ends(np.mean(resampled, axis=0)[:, 0])
    of_clusters = [
        np.bincount(clusters, gain) / len(gain) for gain, (_, _, clusters) in zip(gains, parts, strict=True)
    ]
    mean = float(np.mean([gain.mean() for gain in gains]))
    return Difference(mean, float(low), float(high), _p_value(np.concatenate(of_clusters)))


def _p_value(gains: np.ndarray) -> float:
    """Returns the share of sign patterns whose sum is as far from 0 as that of the clusters' gains (C,)."""
    gains = gains[gains != 0]
    observed = abs(gains.sum()) * (1 - 1e-12)  # because sums in another order differ in the last bits
    if len(gains) <= EXACT_CLUSTERS:
        patterns = np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ gains) >= observed))
    generator, extreme = np.random.default_rng(0), 0
    for size in _parts(SIGN_PATTERNS, len(gains)):
        signs = 1 - 2 * generator.integers(0, 2, (size, len(gains)), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(signs @ gains) >= observed))
    return (extreme + 1) / (SIGN_PATTERNS + 1)  # the observed gains are one of the patterns


def _parts(total: int, num_clusters: int) -> list[int]:
    """Yields numbers of resamples that add up to a total, each small enough for memory."""
    step = max(1, CELLS_AT_ONCE // max(1, num_clusters))
    return [min(step, total - start) for start in range(0, total, step)]
