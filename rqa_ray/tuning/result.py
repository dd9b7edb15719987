"""The typed result of a search, as a program, a person or a notebook gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rqa_ray.job_output import JobResult
from rqa_ray.reports.trials import Trial
from rqa_ray.texts import html_table
from rqa_ray.training.result import TrainResult


@dataclass
class TuneResult(JobResult):
    """The result of a search, and the model that its winner has left in output_dir."""

    model: TrainResult
    metric: str  # the metric that chose the winner
    winner: Trial
    trials: list[Trial]

    def describe(self) -> str:
        """Returns lines for a person, about the winner."""
        return self.model.describe()

    def for_json(self) -> dict[str, Any]:
        """Returns what a program gets: all trials with their best metrics, the number of the winner, and its model."""
        best = [(trial, trial.best(self.metric)) for trial in self.trials]
        trials = [vars(trial) | {"best": found and found[1]} for trial, found in best]
        return {"metric": self.metric, "winner": self.winner.number, "trials": trials, "model": self.model}

    def _repr_html_(self) -> str:
        names = list(self.winner.values)
        rows = []
        for trial in [self.winner, *(trial for trial in self.trials if trial is not self.winner)]:
            best = trial.best(self.metric)
            values = [trial.values.get(name, "") for name in names]
            rows.append([trial.number, *values, best[1] if best else "", trial.state])
        return html_table(["trial", *names, self.metric, "state"], rows) + self.model._repr_html_()
