"""Writes the files that a run leaves in output_dir, all or none, and the last lines that the run prints.

This file does not import Ray: the driver passes plain tables and numbers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.credentials import masked
from rqa_ray.data.sources import SourceCount
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.confidence import INTERVALS
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, name_at
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import ALL_ARGS_FILE, inside, shown, with_suffix, write_json, write_whole
from rqa_ray.texts import command
from rqa_ray.training.candidate import BASE
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.spec import TENSORBOARD_FOLDER

BAD_RECORDS_FILE = "bad_records.jsonl"


@dataclass
class ModelState:
    """The evaluation of the model at one step."""

    step: int
    evaluation: Evaluation
    temperature: float | None = None  # of the loss at this step, if the loss learned it


def write_bad_records(folder: Path, problems: list[str], counts: str) -> str:
    """Writes the first bad records that were left out, one line of JSON each; returns a line for the user."""
    lines = "".join(json.dumps({"problem": problem}) + "\n" for problem in problems)
    write_whole(folder / BAD_RECORDS_FILE, lines.encode())
    return f"warning: bad records, left out: {counts}; the first are listed in {folder / BAD_RECORDS_FILE}"


def write_files(
    staging: Path,
    job: Job,
    best: ModelState,
    train: dict[str, Any],
    intervals_of: dict[str, dict[str, tuple[float, float]]],
    choice: Choice,
    sources: Sequence[SourceCount] = (),
) -> None:
    """Writes all_args.json, and the results files with intervals by split and metric."""
    write_json(staging / ALL_ARGS_FILE, job.to_config())
    candidates = [vars(score) | {"candidate": str(score.candidate)} for score in choice.scores]
    chosen = {"best_step": best.step, "chosen": str(choice.candidate), "candidates": candidates}
    given = {"sources": [vars(source) for source in sources]}
    write_json(staging / "train_results.json", train | chosen | given)
    for split, around in intervals_of.items():
        metrics = best.evaluation.metrics_of(split)
        named = {f"{split}_{name}": ends for name, ends in around.items()}
        write_json(staging / f"{split}_results.json", {"step": best.step, **metrics, INTERVALS: named})


def add_evaluations(path: Path, evaluations: list[tuple[int, dict[str, float]]]) -> None:
    """Adds (step, metrics) of evaluations beside training to the history in `trainer_state.json`."""
    state = json.loads(path.read_text(encoding="utf-8"))
    there = {entry["step"] for entry in state["log_history"] if any(name.startswith("eval_") for name in entry)}
    state["log_history"] += [{"step": step, **metrics} for step, metrics in evaluations if step not in there]
    state["log_history"].sort(key=lambda entry: entry["step"])
    write_json(path, state)


def compare(
    compared: Mapping[str, Comparison], before: ModelState, best: ModelState, dimensions: Sequence[int] = ()
) -> tuple[list[str], dict[str, dict[str, tuple[float, float]]]]:
    """Returns lines that say what was gained, and if that is more than chance; also what cut embeddings have gained.

    Also the best model's intervals by split.
    """
    lines = []
    for split, comparison in compared.items():
        asked, (old, new) = comparison.asked, comparison.values
        lines.append(f"{split}, {len(asked.questions):,} questions{asked.clusters.note}:")
        for label, change in comparison.changes.items():
            name = LABELS[label]
            lines.append(f"  {label:8} {old[name].mean():.3f} -> {new[name].mean():.3f}, {change.describe()}")
        lines += [_gains_at(number, split, before, best) for number in dimensions]
    if "test" not in compared:
        lines.append(
            "the eval questions chose the model, so this gain may be too large; --test_file measures a fair one"
        )
    return lines, {split: comparison.intervals[1] for split, comparison in compared.items()}


def achieved(choice: Choice, compared: Mapping[str, Comparison]) -> str:
    """Returns a sentence about what the chosen model finds, against the pretrained model; on test, if there is one."""
    split = "test" if "test" in compared else "eval"
    of = compared[split]
    asked = f"the {len(of.asked.questions):,} {split} questions" + ", which also chose it" * (split == "eval")
    before, after = ({label: values[LABELS[label]].mean() for label in of.changes} for values in of.values)
    if choice.candidate == BASE:
        found = " and ".join(f"{label} {value:.3f}" for label, value in before.items())
        return f"The run leaves the pretrained model, which has {found} on {asked}."
    gains = [f"{name} {before[name]:.3f} -> {after[name]:.3f}, {of.changes[name].describe()}" for name in of.changes]
    return f"The model of this run, {choice.candidate}, against the pretrained model on {asked}: {'; '.join(gains)}."


def _gains_at(dimensions: int, split: str, before: ModelState, best: ModelState) -> str:
    """Returns the line about embeddings that are cut to some dimensions."""
    gains = []
    for label in HEADLINES:
        metrics = [state.evaluation.metrics.get(f"{split}_{name_at(label, dimensions)}") for state in (before, best)]
        # a run that goes on with other dimensions has not measured them before
        gains.append(f"{label} {' -> '.join('unknown' if value is None else f'{value:.3f}' for value in metrics)}")
    return f"  cut to {dimensions} dimensions: {', '.join(gains)}"


def last_lines(job: Job, lines: list[str], choice: Choice, report: str, next_command: str | None = None) -> list[str]:
    """Returns the last lines of a run; if no next command is given, they suggest another learning rate.

    `report` is the line about report.html.
    """
    folder = job.location
    best = f"best {choice.candidate} by {choice.metric}; model and results in {shown(folder)}"
    last = [*choice.describe(), *lines, best, report, "next:"]
    if "tensorboard" in (job.training["report_to"] or ""):
        logs = job.settings.logging_dir or inside(folder, TENSORBOARD_FOLDER)
        last.append(f"  tensorboard --logdir {shlex.quote(masked(logs))}")
    arguments = inside(folder, ALL_ARGS_FILE)
    # a mixture with the pretrained weights takes back a part of what training has moved: the steps were too large
    gained = choice.candidate.step > 0 and choice.candidate.share == 1
    rate = job.training["learning_rate"] * (2 if gained else 0.5)
    words = [arguments, "--learning_rate", f"{rate:g}", "--output_dir", with_suffix(folder, "-2")]
    return [*last, f"  {next_command or command(*job.command[:1] or ['jobs/train.py'], *words)}"]
