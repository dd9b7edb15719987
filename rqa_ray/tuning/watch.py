"""Watches the trials of a search: draws the table, and writes trials.csv."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.exceptions import RayError

from rqa_ray.errors import last_line
from rqa_ray.progress import SECONDS_BETWEEN_PLAIN_LINES
from rqa_ray.reports.trials import (
    ENDED,
    FAILED,
    FINISHED,
    RUNNING,
    WAITING,
    Trial,
    headline,
    ranked,
    read_trial,
    table_lines,
    write_trials,
)
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.mailbox import free_workers

SECONDS_BETWEEN_DRAWINGS = 1.0
STATES = {"PENDING": WAITING, "RUNNING": RUNNING, "ERROR": FAILED, "TERMINATED": FINISHED}


@dataclass
class Screen:
    """Keeps what is on the terminal now; elsewhere, prints plain lines."""

    num_lines: int = 0
    drawn: float = 0.0
    printed: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)
    pairs_before: int | None = None  # questions seen by trials of an earlier process
    ended: set[int] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)

    def draw(self, lines: list[str]) -> None:
        """Replaces the lines on the screen."""
        up = f"\x1b[{self.num_lines}F" if self.num_lines else ""
        sys.stderr.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[0J")
        sys.stderr.flush()
        self.num_lines = len(lines)

    def clear(self) -> None:
        if self.num_lines:
            self.draw([])


@dataclass
class Watch(ray.tune.Callback):
    """A callback of Tune. Tune stores it in its own state, so it looks up the objects of this process by name."""

    output_dir: str
    root: str  # folder or URI of the search's checkpoints
    mailbox: str  # name of the mailbox actor
    names: list[str]  # names of the arguments that are searched
    metric: str
    budget_pairs: int
    evaluations: int
    total: int
    has_workers: bool  # whether a trial has workers beside the process that Tune starts
    quiet: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        screen = self._screen()
        now = time.monotonic()
        if now - screen.drawn >= SECONDS_BETWEEN_DRAWINGS:
            screen.drawn = now
            self.show(trials)

    def _screen(self) -> Screen:
        return self.__dict__.setdefault("_state", Screen())

    def read(self, trials: list[Any]) -> list[Trial]:
        """Returns Tune's trials as rows."""
        return [
            read_trial(
                number,
                trial.trial_id,
                {name: trial.config[name] for name in self.names if name in trial.config},
                STATES.get(trial.status, WAITING),
                trial.last_result,
                self.evaluations,
                last_line(trial.get_pickled_error() or trial.get_error() or FAILED) if trial.status == "ERROR" else "",
            )
            for number, trial in enumerate(sorted(trials, key=place), 1)
        ]

    def show(self, trials: list[Any]) -> None:
        """Draws the table; writes trials.csv when a trial has ended."""
        screen, rows = self._screen(), self.read(trials)
        ended = {trial.number for trial in rows if trial.state in ENDED}
        new = ended - screen.ended
        if new:
            self.free_workers([trial.name for trial in rows if trial.number in new])
            write_trials(Path(self.output_dir), rows, self.names, self.metric)
            self.delete_others(rows)
        records, notes = self._take()
        for trial in rows:  # how far a trial is between two reports
            record = records.get(trial.name)
            if trial.state == RUNNING and record:
                trial.pairs = max(trial.pairs, record["step"] * record["questions_per_step"])
            elif trial.state == RUNNING:  # the workers have no place on the cluster yet
                trial.state = WAITING
        seen = sum(self.budget_pairs if trial.state in ENDED else trial.pairs for trial in rows)
        if screen.pairs_before is None:
            screen.pairs_before = seen
        elapsed, fresh = time.monotonic() - screen.began, seen - screen.pairs_before
        left = elapsed * (self.total * self.budget_pairs - seen) / fresh if fresh > 0 else None
        head = headline(rows, self.total, self.metric, left)
        for note in notes:
            if note not in screen.notes:
                screen.notes.add(note)
                screen.clear()
                print(note)
        first, screen.ended = not screen.ended and len(new) > 1, ended
        if self.quiet:
            return
        if sys.stderr.isatty():
            screen.draw([*table_lines(rows, *self._columns), head])
        elif new and not first:
            lines = table_lines([trial for trial in rows if trial.number in new], *self._columns)
            lines = [line.removesuffix(" *") for line in lines]  # the best of a few trials is not the best of all
            print("\n".join(lines if len(ended) == len(new) else lines[1:]), file=sys.stderr)
        elif time.monotonic() - screen.printed >= SECONDS_BETWEEN_PLAIN_LINES:
            screen.printed = time.monotonic()
            print(head, file=sys.stderr)

    @property
    def _columns(self) -> tuple[list[str], str, int]:
        return self.names, self.metric, self.budget_pairs

    def free_workers(self, runs: list[str]) -> None:
        """Removes the workers of trials that have ended, for which the next trial would wait for ever."""
        for run in runs if self.has_workers else ():
            free_workers(ray.get_actor(self.mailbox), run)

    def delete_others(self, rows: list[Trial]) -> None:
        """Deletes what ended trials stored, except for the best trial so far: each has a model and an optimizer."""
        order = ranked([trial for trial in rows if trial.state in ENDED], self.metric)
        for trial in order[1:]:
            if trial.state != FAILED:  # --resume tries failed trials again
                stored.delete_runs(self.root, stored.list_run_names(self.root, f"{trial.name}."))

    def _take(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        try:
            return ray.get(ray.get_actor(self.mailbox).take.remote(), timeout=5)
        except (RayError, ValueError):
            return {}, []


def place(trial: Any) -> int:
    """Returns where a trial stands in the order in which trials were drawn.

    A resumed search lists them in another order.
    """
    return int(trial.experiment_tag.partition("_")[0])
