"""The smallest gain, on simulated evaluations whose true difference is known."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pytest

from rqa_ray.evaluation.confidence import paired_difference
from rqa_ray.evaluation.metrics import LABELS
from rqa_ray.evaluation.power import CORRELATION, AskedSplit, describe_power, smallest_gain

RUNS = 300  # simulated evaluations: a share of 80% has a standard error of 2.3 points
NDCG = 1 / np.log2(np.arange(10, 0, -1) + 1)  # of the ranks 10 to 1


@dataclass
class World:
    """Simulates the values of questions before and after training, whose gain is known.

    Each question, and each cluster, has a hidden skill before and after training. Values are the steps of the skill:
    recall is 0 or 1, nDCG@10 follows from the rank of the gold.
    """

    levels: np.ndarray
    shares: np.ndarray  # of the levels before training
    sizes: np.ndarray  # of the clusters

    def draw(self, generator: np.random.Generator, likeness: float, shift: float, sizes: np.ndarray):
        """Returns values before and after, and clusters. `likeness` correlates the skills, training adds `shift`."""
        clusters = np.repeat(np.arange(len(sizes)), sizes)
        shared = 0.3 if len(sizes) < len(clusters) else 0.0  # share of the skill that a cluster has in common

        def skills(count: int) -> tuple[np.ndarray, np.ndarray]:
            before, change = generator.standard_normal((2, count))
            return before, likeness * before + (1 - likeness**2) ** 0.5 * change

        both = [
            shared**0.5 * of_cluster[clusters] + (1 - shared) ** 0.5 * own
            for of_cluster, own in zip(skills(len(sizes)), skills(len(clusters)), strict=True)
        ]
        edges = [NormalDist().inv_cdf(share) for share in np.cumsum(self.shares)[:-1]]
        before, after = (self.levels[np.searchsorted(edges, skill)] for skill in (both[0], both[1] + shift))
        return before, after, clusters

    def calibrated(self, gain: float) -> tuple[float, float]:
        """Returns the likeness and shift of a true gain whose spread is the one that the power analysis takes."""
        likeness, wanted = 0.8, (2 - 2 * CORRELATION) ** 0.5
        for _ in range(3):
            shift = _root(lambda shift, likeness=likeness: self._population(likeness, shift)[0] - gain, 0.0, 5.0)
            unlike = _root(lambda unlike, shift=shift: self._population(1 - unlike, shift)[1] - wanted, 0.0, 1.0)
            likeness = 1 - unlike
        return likeness, shift

    def _population(self, likeness: float, shift: float) -> tuple[float, float]:
        """Returns the mean gain of many questions, and its spread as a share of that of the values before."""
        before, after, _ = self.draw(np.random.default_rng(0), likeness, shift, np.ones(60_000, dtype=int))
        return float((after - before).mean()), float((after - before).std() / before.std())


def _root(rising, low: float, high: float) -> float:
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return middle


def recall(mean: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0.0, 1.0]), np.array([1 - mean, mean])


def ndcg(mean: float) -> tuple[np.ndarray, np.ndarray]:
    found = np.array([1] * 7 + [4, 10, 29]) / 50  # most golds that are found are on top
    share = mean / float(found @ NDCG)
    return np.array([0.0, *NDCG]), np.array([1 - share, *(share * found)])


ALONE, PAIRS, MIXED = [1], [2], [1, 4, 1, 2, 8, 1, 2, 1, 2, 4]


def clusters_of(pattern: list[int], num_questions: int) -> np.ndarray:
    sizes = np.resize(pattern, num_questions)
    return sizes[np.cumsum(sizes) <= num_questions]


SETTINGS = [
    (recall(0.6), 75, ALONE),
    (recall(0.6), 75, PAIRS),
    (recall(0.8), 150, MIXED),
    (recall(0.8), 500, ALONE),
    (ndcg(0.55), 75, PAIRS),
    (ndcg(0.65), 150, MIXED),
    (ndcg(0.75), 500, PAIRS),
]


def simulate(world: World, generator: np.random.Generator) -> tuple[float, float]:
    """Returns how often the test shows the stated gain where training makes this gain, and where it makes none."""
    stated = []
    for _ in range(40):
        before, _, clusters = world.draw(generator, 0.8, 0.0, world.sizes)
        stated.append(smallest_gain(before, clusters))
    gain = float(np.mean([number for number in stated if number is not None]))
    likeness, shift = world.calibrated(gain)
    shown, wrong, gains = 0, 0, []
    for _ in range(RUNS):
        before, after, clusters = world.draw(generator, likeness, shift, world.sizes)
        found = paired_difference(before, after, clusters)
        shown += found.p_value < 0.05
        gains.append(found.mean)
        wrong += paired_difference(*world.draw(generator, likeness, 0.0, world.sizes)).p_value < 0.05
    assert abs(np.mean(gains) - gain) <= 4 * np.std(gains) / RUNS**0.5  # the world has the gain that was asked for
    return shown / RUNS, wrong / RUNS


def test_the_smallest_gain_is_shown_in_80_percent_of_all_runs_and_no_gain_is_seldom_shown(monkeypatch):
    monkeypatch.setattr("rqa_ray.evaluation.confidence.SIGN_PATTERNS", 1_000)
    monkeypatch.setattr("rqa_ray.evaluation.confidence.RESAMPLES", 2)
    generator = np.random.default_rng(0)
    worlds = [World(*metric, clusters_of(pattern, number)) for metric, number, pattern in SETTINGS]
    shown, wrong = np.array([simulate(world, generator) for world in worlds]).T
    assert 0.75 <= shown.mean() <= 0.85 and wrong.mean() <= 0.06  # of 2,100 runs
    errors = 3 * np.sqrt(np.array([0.8 * 0.2, 0.05 * 0.95]) / RUNS)  # three standard errors of one setting
    assert 0.75 - errors[0] <= shown.min() and shown.max() <= 0.85 + errors[0] and wrong.max() <= 0.06 + errors[1]


def test_more_questions_show_smaller_gains_and_copies_of_questions_do_not():
    values, alone = np.tile([1.0, 0.0, 1.0, 1.0], 25), np.arange(100)
    gain = smallest_gain(values, alone)
    assert smallest_gain(np.tile(values, 4), np.arange(400)) < 0.6 * gain
    copies = smallest_gain(np.repeat(values, 4), np.repeat(alone, 4))
    assert gain / 2 < copies < gain  # a part of the likeness in a cluster is taken to be in the gains


def test_a_gain_that_is_larger_than_what_is_left_cannot_be_shown():
    assert smallest_gain(np.ones(50), np.arange(50)) is None
    assert smallest_gain(np.array([1.0] * 48 + [0.0] * 2), np.arange(50)) is None
    assert smallest_gain(np.array([0.0, 1.0]), np.arange(2)) is None
    assert smallest_gain(np.array([0.3]), np.zeros(1, int)) is None


def test_a_model_that_finds_nothing_needs_enough_questions_that_are_found_later():
    assert smallest_gain(np.zeros(100), np.arange(100)) == pytest.approx(0.079)


def test_the_line_names_both_metrics_of_each_split():
    values = dict.fromkeys(LABELS.values(), np.zeros(100)) | {LABELS["nDCG@10"]: np.ones(100)}
    line = describe_power([AskedSplit(name, values, np.arange(100)) for name in ("eval", "test")])
    assert line == (
        "smallest gain that a test can show, in points (80% power): recall@4 +7.9 and nDCG@10 none on 100 eval "
        "questions; recall@4 +7.9 and nDCG@10 none on 100 test questions"
    )
