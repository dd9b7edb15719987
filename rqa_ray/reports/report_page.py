"""Fills report.html, the report of a training run or of an evaluation. The page contains its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rqa_ray.data.sources import SourceCount
from rqa_ray.evaluation.metrics import MEANINGS, short_name
from rqa_ray.reports.curves import curve
from rqa_ray.reports.pages import render
from rqa_ray.reports.split_part import SplitPart
from rqa_ray.reports.suspects_page import SuspectsPart
from rqa_ray.reports.svg import image
from rqa_ray.texts import duration

MOST_SOURCES = 40  # rows of the table of training sources


@dataclass(frozen=True)
class Phase:
    """What the time of a run was spent on."""

    name: str
    seconds: float
    share: float  # of the time of the whole run

    @property
    def time(self) -> str:
        """The seconds as people read them."""
        return duration(self.seconds) if self.seconds >= 1 else f"{self.seconds:.2f} s"


@dataclass(frozen=True)
class ReportPage:
    """What a report shows. An evaluation has none of the parts about training."""

    name: str  # of the output folder
    verdict: list[str]  # lines that say which model was chosen, and why
    splits: list[SplitPart]
    facts: Mapping[str, str]  # about the run, in the order of the page
    data: list[str]  # lines about the data, such as what was cut
    noun: str = "run"  # or "evaluation"
    candidates: Sequence[tuple[str, float, str]] = ()  # name, metric on eval, and why it was refused
    metric: str = ""  # that chose
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)  # of `trainer_state.json`
    chosen_step: int = 0
    phases: Sequence[Phase] = ()
    about_time: Sequence[str] = ()  # lines about the phases
    suspects: SuspectsPart | None = None
    sources: Sequence[SourceCount] = ()  # of the training pairs

    def html(self) -> str:
        """Returns the page as one HTML file."""
        return render("report.html", page=self, curves=self._curves(), meanings=MEANINGS)

    def candidate_rows(self) -> list[tuple[str, str, str]]:
        """Returns the rows of the table of candidates."""
        return [(name, f"{value:.3f}", why) for name, value, why in self.candidates]

    def source_rows(self) -> list[tuple[str, str, str, str]]:
        """Returns the rows of the table of training sources, the largest first."""
        total = max(1, sum(source.pairs for source in self.sources))
        largest = sorted(self.sources, key=lambda source: -source.pairs)[:MOST_SOURCES]
        return [(one.name, f"{one.pairs:,}", f"{one.pairs / total:.1%}", f"{one.questions:,}") for one in largest]

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
        return f"{short_name(self.metric)} of the eval questions"
