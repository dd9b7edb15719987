"""Draws the pictures of the documents: metrics before and after a run, the map of a search, and how a record flows."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.corpus_settings import PicturesSettings
from rqa_ray.errors import InputError
from rqa_ray.evaluation.confidence import INTERVALS
from rqa_ray.evaluation.metrics import LABELS, greater_is_better
from rqa_ray.job_output import JobResult
from rqa_ray.places import ALL_ARGS_FILE, read_json, write_whole
from rqa_ray.reports.svg import LEVELS, Drawing, level
from rqa_ray.reports.trials import FINISHED, TRIALS_FILE
from rqa_ray.texts import short

SHOWN = ("recall@1", "recall@4", "recall@10", "recall@100", "nDCG@10")
STATE_FILE = "trainer_state.json"
ACROSS, DOWN = "learning_rate", "global_batch_size"
LABEL_WIDTH, SMALL, LARGE = 48, 7, 11  # pixels: the width of a number, and the radius of a trial, small and large

# The texts of the boxes of `record_picture`: a title, and lines, as `Drawing.note` takes them.
Note = tuple[str, ...]
READING: tuple[Note, ...] = (
    ("Line of a file", "questions, gold passages,", "hard negatives", "`formats.py"),
    ("Record", "checked; a passage is", "known by source and text", "`schema.py"),
    ("Pairs", "a question with each of", "its gold passages, by id", "`token_tables.py"),
    ("Object store", "token rows, which all", "workers read in place", "`rows.py"),
)
BATCH: Note = ("Global batch", "a function of seed", "and step, dealt to the", "ranks in equal shares", "`batches.py")
GATHER: Note = ("Gather", "the passages", "of all ranks", "are candidates", "of all questions", "`candidates.py")
LOSS: Note = ("Loss", "the gold against", "all candidates;", "other golds are", "masked", "`losses.py")
JUDGING: tuple[Note, ...] = (
    ("Encode", "every rank a share of the corpus", "`evaluator.py"),
    ("Search", "the best 100 for each question", "`topk.py"),
    ("Judge", "recall, nDCG; the best model is kept", "`metrics.py"),
)


@dataclass(frozen=True)
class Change:
    """One metric of a run, before and after training."""

    label: str
    before: float
    after: float
    low: float  # lower end of the 95% interval of `after`
    high: float


@dataclass(frozen=True)
class Place:
    """One trial on the map of a search."""

    rate: float
    batch: int
    value: float  # the trial's best metric
    is_finished: bool


@dataclass
class PicturesResult(JobResult):
    """The pictures that were drawn."""

    def describe(self) -> str:
        """Returns lines for a person."""
        return "\n".join(f"written: {file}" for file in self.files)


def pictures(settings: PicturesSettings) -> PicturesResult:
    """Draws how a record flows, and the run and the search that are given, into output_dir.

    Raises:
        InputError: a folder is not the output of a run or a search; nothing was written.
    """
    files = {"record.svg": record_picture()}
    if settings.run:
        files["recall.svg"] = recall_picture(Path(settings.run))
    if settings.search:
        files["search.svg"] = search_picture(Path(settings.search))
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return PicturesResult(files=[str(folder / name) for name in files])


def recall_picture(run: Path) -> bytes:
    """Draws the test metrics before and after a training run, with the intervals of the metrics after.

    The intervals before are left out. Both metrics are of the same questions, so overlapping intervals say nothing
    about the difference. The last lines of a run show the interval of the difference.
    """
    arguments, step, changes = read_changes(run)
    left, right, top, row = 110, 470, 96, 36
    picture = Drawing(760, top + row * len(changes) + 44, "Retrieval metrics before and after training")
    model = str(arguments["model_name_or_path"]).rstrip("/").rsplit("/", 1)[-1]
    picture.text(24, 36, "Test questions, full corpus", "ink title")
    picture.circle(30, 60, 5, "ground before-line hollow")
    picture.text(42, 64, f"before: {model}", "soft")
    picture.circle(330, 60, 6, "after")
    picture.text(342, 64, f"after {step:,} steps, with 95% interval", "soft")

    def place(value: float) -> float:
        return left + (right - left) * value

    bottom = top + row * len(changes)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        picture.line([(place(tick), top - 8), (place(tick), bottom)])
        picture.text(place(tick), bottom + 20, f"{tick:g}", "soft middle")
    for number, change in enumerate(changes):
        y = top + row * number + row / 2 - 4
        picture.text(left - 12, y + 4, change.label, "ink end")
        picture.line([(place(change.low), y), (place(change.high), y)], "interval after-line")
        picture.line([(place(change.before), y), (place(change.after), y)], "edge")
        picture.circle(place(change.before), y, 5, "ground before-line hollow")
        picture.circle(place(change.after), y, 6, "after")
        interval = f"({change.low:.2f} to {change.high:.2f})"
        picture.text(right + 28, y + 4, f"{change.before:.3f} → {change.after:.3f}", "ink bold")
        picture.text(right + 160, y + 4, interval, "soft")
    return picture.svg()


def read_changes(run: Path) -> tuple[dict[str, Any], int, list[Change]]:
    """Returns the arguments of a run, the step of its best model, and how the test metrics changed.

    Raises:
        InputError: the folder has no finished run, or the run has no test questions.
    """
    arguments, state = read_json(run / ALL_ARGS_FILE), read_json(run / STATE_FILE)
    after = read_json(run / "test_results.json")
    if not (arguments and state and after):
        raise InputError(f"--run {run}: not the output_dir of a training run with a --test_file that has ended")
    before = next(entry for entry in state["log_history"] if entry["step"] == 0)
    changes = []
    for label in SHOWN:
        name = f"test_{LABELS[label]}"
        changes.append(Change(label, before[name], after[name], *after[INTERVALS][name]))
    return arguments, after["step"], changes


def search_picture(search: Path) -> bytes:
    """Draws the trials of a search by learning rate and batch size, colored by the metric that they reached."""
    metric, trials = read_map(search)
    values = [trial.value for trial in trials]
    batches = sorted({trial.batch for trial in trials}, reverse=True)
    low, high, sign = min(values), max(values), 1 if greater_is_better(metric) else -1
    winner = max(trials, key=lambda trial: (trial.is_finished, sign * trial.value))
    exponents = [math.log10(trial.rate) for trial in trials]
    first, last = math.floor(min(exponents)), math.floor(max(exponents)) + 1
    left, right, top, row = 90, 700, 92, 72
    bottom = top + row * len(batches)
    picture = Drawing(760, bottom + 62, "The map of a search")
    quality = next((label for label, name in LABELS.items() if metric.endswith(name)), metric.rsplit("/", 1)[-1])
    picture.text(24, 36, f"{len(trials)} trials: {quality} of the eval questions", "ink title")
    picture.text(24, 64, f"{low:.3f}", "soft")
    for number in range(LEVELS):
        picture.rectangle(68 + 26 * number, 53, 22, 12, f"level{number}")
    picture.text(206, 64, f"{high:.3f}", "soft")
    picture.circle(290, 59, 7, "ground winner-line ring")
    picture.text(304, 64, "the best", "soft")
    if not all(trial.is_finished for trial in trials):
        picture.circle(400, 59, SMALL, "level2")
        picture.text(414, 64, "stopped early", "soft")

    state = read_json(search / STATE_FILE)  # the winner's state; its step 0 is the pretrained model
    if state:
        before = next(entry[metric] for entry in state["log_history"] if entry["step"] == 0)
        picture.text(right, 64, f"pretrained model: {before:.3f}", "soft end")

    def x_of(exponent: float) -> float:
        return left + (right - left) * (exponent - first) / (last - first)

    for exponent in range(first, last + 1):
        picture.line([(x_of(exponent), top), (x_of(exponent), bottom)])
        picture.text(x_of(exponent), bottom + 20, short(10.0**exponent), "soft middle")
    picture.text((left + right) / 2, bottom + 44, "learning rate", "ink middle")
    picture.text(left - 14, top - 4, "batch", "ink end")
    for number, batch in enumerate(batches):
        y, label_end = top + row * (number + 0.5), -math.inf  # where the last label above the line stands
        picture.line([(left, y), (right, y)])
        picture.text(left - 14, y + 4, str(batch), "ink end")
        shown = sorted((trial for trial in trials if trial.batch == batch), key=lambda trial: trial.rate)
        for trial in sorted(shown, key=lambda trial: trial is winner):
            ring, radius = " winner-line ring" * (trial is winner), LARGE if trial.is_finished else SMALL
            picture.circle(x_of(math.log10(trial.rate)), y, radius, level(trial.value, low, high) + ring)
        for trial in shown:
            x = x_of(math.log10(trial.rate))
            is_above = x - label_end >= LABEL_WIDTH
            label_end = x if is_above else label_end
            kind = "ink middle bold" if trial is winner else "soft middle"
            picture.text(x, y - 17 if is_above else y + 27, f"{trial.value:.3f}", kind)
    return picture.svg()


def read_map(search: Path) -> tuple[str, list[Place]]:
    """Returns the name of the metric of a search, and the trials that have a value of the metric.

    Raises:
        InputError: there is no trials.csv, or it has no learning rates and batch sizes.
    """
    path = search / TRIALS_FILE
    if not path.is_file():
        raise InputError(f"--search {search}: no {TRIALS_FILE} in it; give the output_dir of jobs/tune.py")
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        names = list(table.fieldnames or [])
        metric = next((name for name in names if name.startswith("eval_")), "")
        rows = [row for row in table if row.get(metric)]
    if not rows or not {ACROSS, DOWN} <= set(names):
        raise InputError(f"--search {search}: a map needs trials with {ACROSS} and {DOWN}, found {', '.join(names)}")
    trials = [Place(float(row[ACROSS]), int(row[DOWN]), float(row[metric]), row["state"] == FINISHED) for row in rows]
    return metric, trials


def record_picture() -> bytes:
    """Draws how a record of a training file becomes a part of the loss, and how the model is evaluated."""
    title = "How a record flows: file, record, pairs, token batches, ranks, gather, loss, evaluation"
    picture = Drawing(880, 546, title)
    picture.text(24, 36, "Once: read and tokenize", "ink title")
    for number, note in enumerate(READING):
        picture.note(24 + 214 * number, 50, 190, 102, *note)
        if number:
            picture.arrow([(214 * number, 101), (24 + 214 * number, 101)])
    picture.arrow([(764, 152), (764, 170), (12, 170), (12, 308), (24, 308)])
    picture.text(24, 204, "Every step: one global batch", "ink title")
    for x, width, note in ((24, 160, BATCH), (580, 126, GATHER), (726, 130, LOSS)):
        picture.note(x, 218, width, 180, *note)
    for rank, y in enumerate((218, 312)):
        picture.note(
            204, y, 200, 86, f"Rank {rank}: token batches", "similar lengths, no padding", "`token_batches.py"
        )
        picture.note(424, y, 136, 86, "Embeddings", "an encoder each", "`encoder.py")
        for x in (184, 404, 560):
            picture.arrow([(x, y + 43), (x + 20, y + 43)])
    picture.arrow([(706, 308), (726, 308)])
    picture.text(24, 438, "Every evaluation: the model as it is, on the full corpus", "ink title")
    for number, note in enumerate(JUDGING):
        picture.note(24 + 286 * number, 452, 260, 76, *note)
        if number:
            picture.arrow([(286 * number - 2, 490), (24 + 286 * number, 490)])
    return picture.svg()
