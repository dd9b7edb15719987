"""Fills run.html, the report of a training run. The page contains its pictures, and needs no network.

`run.html` beside this file is the template. The page shows data as text, never as markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.reports.curves import curve
from rqa_ray.reports.moves import Moves
from rqa_ray.reports.svg import image
from rqa_ray.texts import as_utf8

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Change:
    """One metric of one split, before and after training, with 95% intervals."""

    label: str
    before: float
    after: float
    before_ends: tuple[float, float]
    after_ends: tuple[float, float]
    sentence: str  # what was gained, and whether the gain may be chance
    kind: str  # "gain", "loss" or "noise"


@dataclass(frozen=True)
class SplitPart:
    """The part of the page about one split."""

    name: str
    num_questions: int
    note: str  # what a reader of the intervals has to know
    changes: list[Change]
    moves: Moves

    @classmethod
    def of(cls, name: str, compared: Comparison, documents: Documents) -> SplitPart:
        """Makes the part from what the model has found before and after training."""
        changes = []
        for label, change in compared.changes.items():
            metric = LABELS[label]
            kind = "noise" if not change.is_beyond_noise else "gain" if change.mean > 0 else "loss"
            before, after = (float(of[metric].mean()) for of in compared.values)
            before_ends, after_ends = (of[metric] for of in compared.intervals)
            changes.append(Change(label, before, after, before_ends, after_ends, change.describe(), kind))
        asked = compared.asked
        return cls(name, len(asked.questions), asked.clusters.note, changes, Moves.of(compared, documents))


@dataclass(frozen=True)
class RunPage:
    """What the report of a run shows."""

    name: str  # of the output folder
    verdict: list[str]  # lines that say which model was chosen, and why
    splits: list[SplitPart]
    facts: Mapping[str, str]  # about the run, in the order of the page
    data: list[str]  # lines about the data, such as what was cut
    candidates: Sequence[tuple[str, float, str]]  # name, metric on eval, and why it was refused
    metric: str  # that chose
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)  # of `trainer_state.json`
    chosen_step: int = 0

    def html(self) -> str:
        """Returns the page as one HTML file."""
        source = Path(__file__).with_name("run.html").read_text("utf-8")
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return as_utf8(environment.from_string(source).render(page=self, curves=self._curves(), labels=HEADLINES))

    def _curves(self) -> list[str]:
        drawn = []
        names = {"training loss": "loss", self.short_metric: self.metric, "learning rate": "learning_rate"}
        for title, name in names.items():
            values = ((entry["step"], entry[name]) for entry in self.history if name in entry)
            points = [(step, value) for step, value in values if math.isfinite(value)]
            if points:
                chosen = self.chosen_step if name == self.metric else None
                drawn.append(image(f"{title} over steps", "svg+xml", curve(title, points, chosen)))
        return drawn

    @property
    def short_metric(self) -> str:
        """The metric that chose, as people call it."""
        return f"{self.metric.rsplit('/', 1)[-1]} of the eval questions"
