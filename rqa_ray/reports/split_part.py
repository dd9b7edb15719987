"""The part of a report about the questions of one split: metrics, kinds of questions, questions won and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.reports.kinds import Grouping, groupings
from rqa_ray.reports.moves import Found, Listing, Passages, Questions

Ends = tuple[float, float]  # of a 95% interval


@dataclass(frozen=True)
class Measured:
    """The mean of one metric of one model."""

    system: str
    value: float
    ends: Ends


@dataclass(frozen=True)
class Line:
    """A sentence about the difference of two models."""

    text: str
    kind: str = "noise"  # or "gain" or "loss"


@dataclass(frozen=True)
class Metric:
    """One metric of all models."""

    label: str
    measured: list[Measured]
    lines: list[Line]  # about its differences


@dataclass(frozen=True)
class SplitPart:
    """The part of a report about one split."""

    name: str
    num_questions: int
    note: str  # what a reader of the intervals has to know
    systems: list[str]  # names of the models
    own: str  # the model that the report is about
    metrics: list[Metric]  # all of `LABELS`
    groupings: list[Grouping]
    listings: list[Listing]

    @classmethod
    def of(
        cls,
        name: str,
        asked: AskedQuestions,
        found: Sequence[Found],
        own: str,
        intervals: Sequence[Mapping[str, Ends]],
        lines: Mapping[str, list[Line]],
        listings: list[Listing],
    ) -> SplitPart:
        """Makes the part from what the models have found.

        `intervals` are those of each model, by metric. `lines` are about metrics, by label.
        """
        metrics = []
        for label, metric in LABELS.items():
            of_all = zip(found, intervals, strict=True)
            measured = [Measured(of.system, float(of.values[metric].mean()), around[metric]) for of, around in of_all]
            metrics.append(Metric(label, measured, lines.get(label, [])))
        systems = [of.system for of in found]
        number, note = len(asked.questions), asked.clusters.note
        return cls(name, number, note, systems, own, metrics, groupings(asked, found), listings)

    @classmethod
    def of_run(cls, name: str, compared: Comparison, documents: Documents, num_splits: int) -> SplitPart:
        """Makes the part of a training run's report, which has `num_splits` such parts."""
        asked = compared.asked
        old, new = compared.values
        before, after = Found("before", old, compared.positions[0]), Found("after", new, compared.positions[1])
        lines = {}
        for label, change in compared.changes.items():
            kind = "noise" if not change.is_beyond_noise else "gain" if change.mean > 0 else "loss"
            lines[label] = [Line(change.describe(), kind)]
        questions = Questions(asked, Passages(documents.passage_ids, documents.document), 2 * num_splits)
        listings = questions.won_and_lost(before, after, won="won", lost="lost")
        return cls.of(name, asked, (before, after), "after", compared.intervals, lines, listings)

    @property
    def headlines(self) -> list[Metric]:
        """The metrics by which models are compared."""
        return [metric for metric in self.metrics if metric.label in HEADLINES]
