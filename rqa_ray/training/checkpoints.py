"""Between the Trainer and Ray: reports, the stored checkpoints, resume, and the mailbox to the driver.

A stored checkpoint is whole when its manifest is there and every file that the manifest names has its size: Ray copies
the files of a folder one by one, and a kill can come between them. Ray owns which checkpoints of a run are kept.
Its own list of them is written late and in place, so a run that resumes is a new Ray run from the newest whole folder.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from pyarrow import fs
from transformers import TrainerCallback

from rqa_ray.data.files import inside, open_location
from rqa_ray.evaluation.evaluate import SplitResult
from rqa_ray.evaluation.metrics import greater_is_better
from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.training.outputs import ModelState
from rqa_ray.training.trainer import (
    EVALUATION_FILE,
    RANKINGS_FILE,
    ContrastiveTrainer,
    merge_metrics,
    result_arrays,
)

MANIFEST_FILE = "manifest.json"
SCORE = "checkpoint_score"  # Ray ranks checkpoints by it
EVALUATION_FOLDER = "evaluation-"
NOT_EVALUATED = -1e30  # a checkpoint saved on a stop signal is the latest, never the best


@ray.remote(num_cpus=0)
class Mailbox:
    """Rank 0 of each run puts progress in, the driver takes it out and may ask for a stop."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}  # by run
        self.notes: list[str] = []
        self.stop = False
        self.places: dict[str, Any] = {}  # placement group of its workers by run

    def hold(self, run: str, place: Any) -> None:
        """Remembers the placement group of a run's workers."""
        self.places[run] = place

    def place(self, run: str) -> Any:
        """The placement group of a run's workers, once, None where it has none."""
        return self.places.pop(run, None)

    def put(self, run: str, record: dict[str, Any] | None, note: str | None = None) -> bool:
        """Keeps the newest record of a run; returns whether a stop was asked for."""
        if record:
            self.records[run] = record
        if note:
            self.notes.append(note)
        return self.stop

    def take(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The newest record of each run, and the notes since the last call."""
        notes, self.notes = self.notes, []
        return self.records, notes

    def request_stop(self) -> None:
        self.stop = True


class ReportCallback(TrainerCallback):
    """Reports every checkpoint to Ray, with the metrics of its own step, and progress to the mailbox."""

    def __init__(
        self,
        trainer: ContrastiveTrainer,
        mailbox: Any,
        run: str,
        questions_per_step: int,
        report: Callable[..., None] = ray.train.report,
    ) -> None:
        self.trainer, self.mailbox, self.run, self.report = trainer, mailbox, run, report
        self.progress = Progress(questions_per_step=questions_per_step)
        self.metric = trainer.args.metric_for_best_model or ""
        self.stopped = False
        self._stop_asked: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Called by the evaluator with the number of texts encoded."""
        if done < total:
            self.send(phase=f"evaluating at step {self.progress.step}, texts", done=done, total=total)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.progress.quality = f"{self.metric.rsplit('/', 1)[-1]} {metrics[self.metric]:.3f}"
        self.send(phase="step", done=state.global_step, total=state.max_steps)

    def on_log(self, args, state, control, logs, **kwargs):
        self.progress.loss = logs.get("loss", self.progress.loss)

    def on_step_end(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)
        if distributed.any_rank(self._stop_is_asked(), args.device) and state.global_step < state.max_steps:
            # An evaluation that is due at this step is made: after the resume it would never be.
            self.stopped = control.should_training_stop = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        metrics: dict[str, Any] = {"step": state.global_step, SCORE: NOT_EVALUATED}
        if self.trainer.evaluated_step == state.global_step:
            metrics |= self.trainer.results["eval"].metrics
            metrics[SCORE] = score(metrics[self.metric], self.metric, state.global_step)
        checkpoint, beside = None, False
        if state.is_world_process_zero:
            write_manifest(folder, state.global_step)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            beside = self.trainer.saving.due_step == state.global_step
        distributed.barrier()
        self.report(metrics, checkpoint=checkpoint, validation=beside)  # returns when the upload is done
        if state.is_world_process_zero:
            shutil.rmtree(folder)

    def send(self, **changes: Any) -> None:
        """Changes the progress record, and puts it in the mailbox."""
        for name, value in changes.items():
            setattr(self.progress, name, value)
        if distributed.rank() == 0:
            self._stop_asked = self.mailbox.put.remote(self.run, as_record(self.progress))

    def _stop_is_asked(self) -> bool:
        return bool(ray.get(self._stop_asked)) if self._stop_asked is not None else False


def score(value: float, metric: str, step: int) -> float:
    """What Ray ranks by, higher is better: the metric; of equal ones the earliest, where Ray would keep the latest."""
    return (value if greater_is_better(metric) else -value) - 1e-12 * step


def write_manifest(folder: Path, step: int) -> None:
    """Names every file of a checkpoint folder with its size (bytes)."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / MANIFEST_FILE).write_text(json.dumps({"step": step, "files": files}, indent=2))


@contextmanager
def local_checkpoint(resume_from: str | None, is_worker: bool = True) -> Iterator[str | None]:
    """Local folder of the checkpoint to resume from: a worker's latest, else the one that the run starts from."""
    checkpoint = ray.train.get_checkpoint() if is_worker else None
    if checkpoint is None and resume_from:
        filesystem, path = open_location(resume_from)
        checkpoint = ray.train.Checkpoint(path, filesystem)
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as folder:
            yield folder


@dataclass
class StoredCheckpoint:
    """A whole checkpoint in storage."""

    location: str  # path or URI
    path: str  # in its file system
    filesystem: fs.FileSystem
    step: int
    metrics: dict[str, float]  # empty where the step was not evaluated
    before: dict[str, float]  # of step 0

    def model_states(self) -> tuple[ModelState, ModelState]:
        """The model before training, and that of this checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            self.download(RANKINGS_FILE, Path(folder) / RANKINGS_FILE)
            with np.load(Path(folder) / RANKINGS_FILE) as arrays:
                rankings = dict(arrays)
        beside = f"{evaluation_folder(self.path, self.step)}/{RANKINGS_FILE}"
        if self.filesystem.get_file_info(beside).type == fs.FileType.File:
            with self.filesystem.open_input_file(beside) as file, np.load(io.BytesIO(file.read())) as arrays:
                rankings |= dict(arrays)
        first = {name[len("before_") :]: value for name, value in rankings.items() if name.startswith("before_")}
        return ModelState(0, self.before, first), ModelState(self.step, self.metrics, rankings)

    def splits(self) -> dict[str, SplitResult]:
        """What was found of this checkpoint, by split."""
        found, arrays = self.model_states()[1], {}
        for split in ("eval", "test"):
            if f"{split}_scores" in found.rankings:
                metrics = {name: value for name, value in found.metrics.items() if name.startswith(f"{split}_")}
                ranking = found.rankings[f"{split}_scores"], found.rankings[f"{split}_positions"]
                arrays[split] = SplitResult(metrics, *ranking)
        return arrays

    def download(self, name: str, target: Path) -> None:
        """Copies a file or folder of the checkpoint."""
        source = f"{self.path}/{name}"
        if self.filesystem.get_file_info(source).type == fs.FileType.Directory:
            target.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            source, str(target), source_filesystem=self.filesystem, destination_filesystem=fs.LocalFileSystem()
        )


def evaluation_folder(checkpoint_path: str, step: int) -> str:
    """Where the evaluation that was made beside training is: checkpoints come and go, it stays."""
    return f"{checkpoint_path.rstrip('/').rpartition('/')[0]}/{EVALUATION_FOLDER}{step}"


def step_of(checkpoint: ray.train.Checkpoint) -> int:
    """The optimizer step of a reported checkpoint."""
    return _read_json(checkpoint.filesystem, f"{checkpoint.path}/{MANIFEST_FILE}")["step"]


def write_evaluation(checkpoint: ray.train.Checkpoint, step: int, results: dict[str, SplitResult]) -> None:
    """Stores what was found of a checkpoint, the metrics last: where they are, all of it is."""
    folder, filesystem = evaluation_folder(checkpoint.path, step), checkpoint.filesystem
    filesystem.create_dir(folder, recursive=True)
    rankings = io.BytesIO()
    np.savez(rankings, **result_arrays("", results))  # type: ignore[arg-type]
    metrics = json.dumps({"step": step, "metrics": merge_metrics(results)}, indent=2)
    for name, content in ((RANKINGS_FILE, rankings.getvalue()), (EVALUATION_FILE, metrics.encode())):
        with filesystem.open_output_stream(f"{folder}/{name}") as file:
            file.write(content)


def list_evaluations(storage_path: str, run_names: list[str]) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of all evaluations that were made beside training."""
    filesystem, root = open_location(storage_path)
    found = []
    for name in run_names:
        for folder in filesystem.get_file_info(fs.FileSelector(f"{root}/{name}", allow_not_found=True)):
            if folder.base_name.startswith(EVALUATION_FOLDER):
                evaluation = _read_json(filesystem, f"{folder.path}/{EVALUATION_FILE}")
                found += [(evaluation["step"], evaluation["metrics"])] if evaluation else []
    return sorted(found, key=lambda one: one[0])


def list_checkpoints(storage_path: str, run_names: list[str]) -> list[StoredCheckpoint]:
    """The whole checkpoints of some runs, by step."""
    filesystem, root = open_location(storage_path)
    found = []
    for name in run_names:
        for folder in filesystem.get_file_info(fs.FileSelector(f"{root}/{name}", allow_not_found=True)):
            if folder.type == fs.FileType.Directory:
                location = inside(storage_path, f"{name}/{folder.base_name}")
                checkpoint = read_checkpoint(location)
                found += [checkpoint] if checkpoint else []
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def list_run_names(storage_path: str, prefix: str) -> list[str]:
    """Names of the stored runs that begin with a prefix."""
    filesystem, root = open_location(storage_path)
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(folder.base_name for folder in found if folder.base_name.startswith(prefix))


def read_checkpoint(location: str) -> StoredCheckpoint | None:
    """The checkpoint of a folder or URI, None where it is not whole."""
    filesystem, path = open_location(location)
    return read_checkpoint_at(path, filesystem, location)


def read_checkpoint_at(path: str, filesystem: fs.FileSystem, location: str = "") -> StoredCheckpoint | None:
    """The checkpoint at a path of a file system, None where it is not whole."""
    manifest = _read_json(filesystem, f"{path}/{MANIFEST_FILE}")
    if manifest is None:
        return None
    infos = filesystem.get_file_info([f"{path}/{name}" for name in manifest["files"]])
    if [info.size for info in infos] != list(manifest["files"].values()):
        return None
    evaluation, step = _read_json(filesystem, f"{path}/{EVALUATION_FILE}"), manifest["step"]
    beside = _read_json(filesystem, f"{evaluation_folder(path, step)}/{EVALUATION_FILE}") or evaluation
    return StoredCheckpoint(location, path, filesystem, step, beside["metrics"], evaluation["before"])


def best_checkpoint(checkpoints: list[StoredCheckpoint], metric: str) -> StoredCheckpoint:
    """The best of the evaluated checkpoints, of equals the earliest."""
    evaluated = [checkpoint for checkpoint in checkpoints if metric in checkpoint.metrics]
    return max(evaluated, key=lambda checkpoint: score(checkpoint.metrics[metric], metric, checkpoint.step))


def delete_runs(storage_path: str, run_names: list[str]) -> None:
    """Deletes all that some runs stored."""
    filesystem, root = open_location(storage_path)
    for name in run_names:
        if filesystem.get_file_info(f"{root}/{name}").type == fs.FileType.Directory:
            filesystem.delete_dir(f"{root}/{name}")


def _read_json(filesystem: fs.FileSystem, path: str) -> Any:
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    try:
        with filesystem.open_input_stream(path) as file:
            return json.loads(file.read())
    except ValueError:  # cut short by a kill
        return None
