"""The learning curve of a search over shares of the training pairs: the metric for each number of pairs.

The curve answers whether more labels would help, and never calls noise a gain: a gain is said only if the interval of
the difference, question by question, is above 0, and the paired test agrees.

Shapes: Q questions of eval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rqa_ray.evaluation.confidence import LEVEL, intervals, paired_difference
from rqa_ray.evaluation.metrics import LABELS
from rqa_ray.reports.svg import Drawing
from rqa_ray.reports.trials import FINISHED, Trial

SHARE = "train_share"
AVERAGED = (SHARE, "seed")  # arguments in which the trials of one curve may differ
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 76, 40, 70, 64  # pixels: the picture, and its margins
TICKS = 5


def by_question_name(metric: str) -> str:
    """Returns the name, without its split, of the metric that a curve shows: a search's own, or nDCG@10 for a loss."""
    name = metric.removeprefix("eval_")
    return name if name in LABELS.values() else LABELS["nDCG@10"]


@dataclass(frozen=True)
class Point:
    """The result of training on one share."""

    share: float
    pairs: float  # mean number of training pairs of the runs
    runs: int
    values: np.ndarray  # (Q,) the metric of each question, averaged over the runs
    low: float  # lower end of the 95% interval of the mean
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """The metric for each share of the training pairs."""

    label: str  # name of the metric for people
    points: list[Point]  # two or more, the smallest share first
    clusters: np.ndarray  # (Q,) clusters of questions that tend to be right or wrong together

    @classmethod
    def of(cls, trials: Sequence[Trial], metric: str, clusters: np.ndarray) -> LearningCurve | None:
        """Makes the curve from finished trials; returns None if they have fewer than two shares.

        Trials that differ in their seed alone are averaged. If other arguments are searched too, each share has its
        best values of them.
        """
        by_share: dict[float, dict[str, list[Trial]]] = {}
        for trial in trials:
            if trial.state == FINISHED and trial.by_question and SHARE in trial.values:
                others = sorted((name, value) for name, value in trial.values.items() if name not in AVERAGED)
                by_share.setdefault(trial.values[SHARE], {}).setdefault(str(others), []).append(trial)
        points = []
        for share, groups in sorted(by_share.items()):
            means = [np.mean([trial.by_question for trial in group], axis=0) for group in groups.values()]
            best = int(np.argmax([values.mean() for values in means]))
            group = list(groups.values())[best]
            low, high = intervals({metric: means[best]}, clusters)[metric]
            pairs = float(np.mean([trial.train_pairs for trial in group]))
            points.append(Point(share, pairs, len(group), means[best], low, high))
        label = next(label for label, name in LABELS.items() if name == by_question_name(metric))
        return cls(label, points, clusters) if len(points) > 1 else None

    @cached_property
    def sentences(self) -> list[str]:
        """What more labels did, first from the largest share but one to the largest."""
        points = self.points
        lines = [self._compare(points[-2], points[-1])]
        if len(points) > 2:
            lines.append(self._compare(points[0], points[-1]))
        if min(point.runs for point in points) == 1:
            lines.append(
                f"The intervals leave out the noise of training; {SHARE} together with seed=1,2,3 in --tune averages "
                "three runs of each share."
            )
        return lines

    def _compare(self, fewer: Point, more: Point) -> str:
        change = paired_difference(fewer.values, more.values, self.clusters)
        shares = f"{SHARE} {fewer.share:g} to {more.share:g}"
        times = f"{more.pairs / fewer.pairs:.2g} times the labels"
        labels = f"{times}, from {fewer.pairs:,.0f} to {more.pairs:,.0f} training pairs ({shares})"
        if change.low > 0 and change.is_beyond_noise:
            return f"{labels}, gained {self.label}: {change.describe()}; more labels may help."
        if change.high < 0 and change.is_beyond_noise:
            return f"{labels}, lost {self.label}: {change.describe()}; look at the labels, or train longer."
        number = f"{len(self.clusters):,} eval questions"
        return f"{labels}: no gain of {self.label} is visible with {number}: {change.describe()}."

    def svg(self) -> bytes:
        """Draws the metric over the number of training pairs, with 95% intervals."""
        picture = Drawing(WIDTH, HEIGHT, f"{self.label} for each number of training pairs")
        picture.text(24, 36, f"{self.label} of the eval questions, with {LEVEL}% intervals", "ink title")
        low, high = min(point.low for point in self.points), max(point.high for point in self.points)
        ends = [math.log(self.points[place].pairs) for place in (0, -1)]
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def across(pairs: float) -> float:
            return LEFT + 24 + (width - 48) * (math.log(pairs) - ends[0]) / max(ends[1] - ends[0], 1e-9)

        def down(value: float) -> float:
            return TOP + height * (high - value) / max(high - low, 1e-9)

        for tick in range(TICKS):
            value = low + (high - low) * tick / (TICKS - 1)
            picture.line([(LEFT, down(value)), (WIDTH - RIGHT, down(value))])
            picture.text(LEFT - 10, down(value) + 4, f"{value:.3f}", "soft end")
        picture.line([(across(point.pairs), down(float(point.values.mean()))) for point in self.points], "edge")
        for point in self.points:
            x, y = across(point.pairs), down(float(point.values.mean()))
            picture.line([(x, down(point.low)), (x, down(point.high))], "interval after-line")
            picture.circle(x, y, 6, "after")
            picture.text(x, HEIGHT - BOTTOM + 22, f"{point.pairs:,.0f}", "soft middle")
        picture.text(LEFT + width / 2, HEIGHT - 18, "training pairs (logarithmic)", "soft middle")
        return picture.svg()

    def head(self) -> list[str]:
        """Returns the head of the table of points."""
        return [SHARE, "training pairs", "runs", self.label, f"{LEVEL}% interval"]

    def rows(self) -> list[list[str]]:
        """Returns the rows of the table of points."""
        return [
            [
                f"{point.share:g}",
                f"{point.pairs:,.0f}",
                str(point.runs),
                f"{point.values.mean():.3f}",
                f"{point.low:.3f} to {point.high:.3f}",
            ]
            for point in self.points
        ]
