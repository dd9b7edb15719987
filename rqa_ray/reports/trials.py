"""The trials of a search: their rows, the winner, trials.csv, and the table for the terminal."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqa_ray.evaluation.metrics import greater_is_better, short_name
from rqa_ray.places import write_whole
from rqa_ray.texts import duration, short

TRIALS_FILE = "trials.csv"
WIDTH = 80  # columns of the terminal
FINISHED, STOPPED, RUNNING, WAITING, FAILED, DIVERGED = (
    "finished",
    "stopped early",
    "running",
    "waiting",
    "failed",
    "diverged",
)
ENDED = (FINISHED, STOPPED, FAILED, DIVERGED)
LABELS = {"learning_rate": "lr", "global_batch_size": "batch", "temperature": "temp", "hard_neg_ratio": "hard_neg"}


@dataclass(frozen=True)
class Choices:
    """An argument that takes one of some values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " ".join(map(short, self.values))


@dataclass(frozen=True)
class Range:
    """An argument that takes a number between two ends, both included."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def __str__(self) -> str:
        return f"{short(self.low)} to {short(self.high)}{', log-uniform' * self.is_log}"


Space = dict[str, Choices | Range]


@dataclass
class Trial:
    """One trial in its present state."""

    number: int  # numbered from 1
    name: str  # name of its run, its TensorBoard folder and its checkpoints
    values: dict[str, Any]  # values of the arguments that are searched
    state: str
    pairs: int = 0  # training pairs seen at its last report
    curve: list[tuple[int, float]] = field(
        default_factory=list
    )  # (training pairs seen, metric), the pretrained model first
    steps: int = 0
    seconds: float = 0.0
    problem: str = ""
    train_metrics: dict[str, Any] = field(default_factory=dict)
    train_pairs: int = 0  # training pairs, of which the trial saw some several times
    by_question: list[float] = field(default_factory=list)  # metric of each eval question, if the share is searched

    def best(self, metric: str) -> tuple[int, float] | None:
        """Returns (training pairs seen, metric) at the best metric, the earliest of equals.

        None before the first report.
        """
        sign = 1 if greater_is_better(metric) else -1
        return max(self.curve, key=lambda place: (sign * place[1], -place[0]), default=None)

    @property
    def batch(self) -> int:
        return self.pairs // self.steps if self.steps else 0


def read_trial(
    number: int,
    name: str,
    values: dict[str, Any],
    state: str,
    report: dict[str, Any] | None,
    evaluations: int,
    problem: str = "",
) -> Trial:
    """Makes a trial from its last report; `state` says whether it is running, waiting, failed, or has ended."""
    report = report or {}
    problem = problem or report.get("failure") or ""
    if state not in (RUNNING, WAITING, FAILED):
        state = DIVERGED if problem else FINISHED if report.get("evaluation", 0) >= evaluations else STOPPED
    return Trial(
        number,
        name,
        values,
        state,
        report.get("pairs", 0),
        [(pairs, value) for pairs, value in report.get("curve") or []],
        report.get("step", 0),
        report.get("time_total_s", 0.0),
        problem.strip().splitlines()[-1] if problem.strip() else "",
        report.get("train_metrics") or {},
        report.get("train_pairs", 0),
        report.get("by_question") or [],
    )


def ranked(trials: list[Trial], metric: str) -> list[Trial]:
    """Returns trials that have reported, the best first: finished before unfinished, the earliest of equals first."""
    sign = 1 if greater_is_better(metric) else -1
    reported = [(trial, best[1]) for trial in trials if (best := trial.best(metric))]
    reported.sort(key=lambda pair: (pair[0].state != FINISHED, -sign * pair[1], pair[0].number))
    return [trial for trial, _ in reported]


def write_trials(folder: Path, trials: list[Trial], names: list[str], metric: str) -> None:
    """Writes trials.csv: one row for each trial, in the order of their start."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", *names, metric, "best_step", "steps", "pairs", "seconds", "name", "problem"])
    for trial in trials:
        best = trial.best(metric)
        best_step = best[0] // trial.batch if best and trial.batch else ""
        row = [trial.number, trial.state, *(trial.values.get(name, "") for name in names), best[1] if best else ""]
        table.writerow([*row, best_step, trial.steps, trial.pairs, round(trial.seconds, 1), trial.name, trial.problem])
    write_whole(folder / TRIALS_FILE, text.getvalue().encode())


def table_lines(trials: list[Trial], names: list[str], metric: str, budget_pairs: int, most: int = 12) -> list[str]:
    """Returns a table of at most 80 columns: the running trials and the best of the others; the best has a star."""
    order = ranked(trials, metric)
    shown = [trial for trial in trials if trial.state == RUNNING]
    others = [*order, *(trial for trial in trials if trial.state in (FAILED, DIVERGED) and trial not in order)]
    shown += [trial for trial in others if trial not in shown][: max(0, most - len(shown))]
    quality = short_name(metric)
    rows = [["trial", *(LABELS.get(name, name) for name in names), quality, "seen", "state"]]
    for trial in shown:
        best = trial.best(metric)
        values = [short(trial.values[name]) if name in trial.values else "" for name in names]
        seen = f"{min(1.0, trial.pairs / budget_pairs):.0%}"
        state = trial.state + (" *" if order and trial is order[0] and trial.state == FINISHED else "")
        rows.append([str(trial.number), *values, f"{best[1]:.4f}" if best else "", seen, state])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]])[:WIDTH].rstrip())
    lines += [f"trial {trial.number} {trial.state}: {trial.problem}"[:WIDTH] for trial in shown if trial.problem]
    return lines


def headline(trials: list[Trial], total: int, metric: str, seconds_left: float | None) -> str:
    """Returns one line about how far the search is."""
    ended = sum(trial.state in ENDED for trial in trials)
    parts = [f"{ended} of {total} trials ended", f"{sum(trial.state == RUNNING for trial in trials)} running"]
    bests = [best[1] for trial in trials if (best := trial.best(metric))]
    if bests:
        value = max(bests) if greater_is_better(metric) else min(bests)
        parts.append(f"best {short_name(metric)} {value:.4f}")
    if seconds_left is not None:
        parts.append(f"at most {duration(seconds_left)} left")
    return ", ".join(parts)
