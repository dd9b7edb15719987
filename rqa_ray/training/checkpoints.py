"""Finds stored checkpoints: which are complete, which is the newest, which is the best, and their evaluations.

Ray copies the files of a checkpoint one by one, and a kill may come in between. So a checkpoint counts as complete
only if its manifest exists and every file in the manifest has its size. The manifest has checksums too, which are
compared before a file is used. Ray decides which checkpoints of a run are kept. But Ray writes its own list of them
late, and overwrites it in place. So a run that resumes is a new Ray run, which starts from the newest complete
checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ray.train
from pyarrow import fs
from transformers.utils import CONFIG_NAME

from rqa_ray.errors import InputError
from rqa_ray.evaluation.results import BEFORE, EVALUATION, Evaluation, flat_metrics, metrics_file
from rqa_ray.places import inside, open_location, read_any_json, shown
from rqa_ray.retriever.adapters import CONFIG_FILE
from rqa_ray.retriever.encoder_settings import heads, model_config
from rqa_ray.settings import LoraSettings
from rqa_ray.training.checkpoint_files import ADAPTER_FOLDER, MODEL_FOLDER, STEP_FILE, StepNote
from rqa_ray.training.damage import checksum, damaged_in_copy, first_damaged
from rqa_ray.training.finish import score

MANIFEST_FILE = "manifest.json"
SCORE = "checkpoint_score"  # Ray ranks checkpoints by this metric
EVALUATION_FOLDER = "evaluation-"
NOT_USED = "warning: the checkpoint {} is not used, because its file {} was damaged"
NOT_EVALUATED = -1e30  # the score of a checkpoint without evaluation, such as after a stop: it is never the best


def write_manifest(folder: Path, step: int) -> None:
    """Writes the names, sizes (bytes) and checksums of all files in a checkpoint folder."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path.stat().st_size for name, path in paths.items()}
    sums = {name: checksum(fs.LocalFileSystem(), str(path)) for name, path in paths.items()}
    (folder / MANIFEST_FILE).write_text(json.dumps({"step": step, "files": files, "crc32": sums}, indent=2))


def checksums(filesystem: fs.FileSystem, path: str) -> dict[str, int]:
    """Returns the checksums in the manifest of a checkpoint, by file; none if an earlier version has written it."""
    return (_read_json(filesystem, f"{path}/{MANIFEST_FILE}") or {}).get("crc32", {})


def damaged_file(filesystem: fs.FileSystem, path: str) -> str | None:
    """Returns the first file of a checkpoint whose content is not what was written; None if all files are right."""
    return first_damaged(filesystem, f"{path}/", checksums(filesystem, path))


@contextmanager
def local_checkpoint(
    resume_from: str | None, is_worker: bool = True, tell: Callable[[str], None] = print
) -> Iterator[str | None]:
    """Yields a local folder of the checkpoint to resume from: the worker's latest, else that of the run's start.

    A checkpoint that was damaged gives way to the one before. All ranks read the same files, so they choose alike.
    """
    with ExitStack() as stack:
        for checkpoint in _to_resume_from(resume_from, is_worker):
            folder = stack.enter_context(checkpoint.as_directory())
            if not (damaged := damaged_file(fs.LocalFileSystem(), folder)):
                yield folder
                return
            tell(NOT_USED.format(shown(checkpoint.path), damaged))
        yield None


def _to_resume_from(resume_from: str | None, is_worker: bool) -> Iterator[ray.train.Checkpoint]:
    """Yields the checkpoints from which a worker may go on, the best choice first."""
    latest = ray.train.get_checkpoint() if is_worker else None
    if latest:
        yield latest
        for stored in reversed(_in_folder(latest.filesystem, latest.path.rstrip("/").rpartition("/")[0])):
            if stored.path != latest.path:
                yield ray.train.Checkpoint(stored.path, stored.filesystem)
    if resume_from:
        filesystem, path = open_location(resume_from)
        yield ray.train.Checkpoint(path, filesystem)


def newest_intact(checkpoints: list[StoredCheckpoint], tell: Callable[[str], None] = print) -> StoredCheckpoint | None:
    """Returns the last of the checkpoints that was not damaged; tells of those that were."""
    for checkpoint in reversed(checkpoints):
        if not (damaged := damaged_file(checkpoint.filesystem, checkpoint.path)):
            return checkpoint
        tell(NOT_USED.format(shown(checkpoint.location or checkpoint.path), damaged))
    return None


@dataclass
class StoredCheckpoint:
    """A complete checkpoint in storage."""

    location: str  # path or URI
    path: str  # path in its file system
    filesystem: fs.FileSystem
    step: int
    metrics: dict[str, float]  # metrics by full name; empty if the step was not evaluated

    def evaluation(self) -> Evaluation:
        """Reads the evaluation of this step, made in the loop or beside training."""
        beside = read_evaluation_from(evaluation_folder(self.path, self.step), self.filesystem)
        return beside or _load(self.path, self.filesystem, EVALUATION)

    def before(self) -> Evaluation:
        """Reads the evaluation of the pretrained model."""
        return _load(self.path, self.filesystem, BEFORE)

    @property
    def note(self) -> StepNote:
        """What the checkpoint says about itself."""
        return StepNote.of(_read_json(self.filesystem, f"{self.path}/{STEP_FILE}"))

    def differs_from(self, model_folder: str) -> str:
        """Says in words how the checkpoint's model differs from that of a folder in kind or size.

        Empty if it may be the same.
        """
        own = _read_json(self.filesystem, f"{self.path}/{MODEL_FOLDER}/{CONFIG_NAME}") or {}
        other = model_config(model_folder)
        sizes = [name for name in own if type(own[name]) is int and not name.endswith("_token_id")]
        names = [name for name in ["model_type", *sizes] if name in own and name in other]
        differ = [f"{name} {own[name]}, not {other[name]}" for name in names if own[name] != other[name]]
        own_heads = heads(lambda name: _read_json(self.filesystem, f"{self.path}/{MODEL_FOLDER}/{name}"))
        other_heads = heads(lambda name: read_any_json(Path(model_folder) / name, None))
        if own_heads != other_heads:
            differ.append(f"{', '.join(own_heads) or 'no head'}, not {', '.join(other_heads) or 'none'}")
        return ", ".join(differ)

    def lora(self) -> LoraSettings:
        """Returns the rank and alpha of the checkpoint's adapter; no rank if it has no adapter."""
        config = _read_json(self.filesystem, f"{self.path}/{ADAPTER_FOLDER}/{CONFIG_FILE}") or {}
        return LoraSettings(lora_r=config.get("r"), lora_alpha=config.get("lora_alpha"))

    def download(self, name: str, target: Path) -> None:
        """Copies a file or folder of the checkpoint.

        Raises:
            InputError: a file was damaged.
        """
        source = f"{self.path}/{name}"
        if self.filesystem.get_file_info(source).type == fs.FileType.Directory:
            target.mkdir(parents=True, exist_ok=True)
        fs.copy_files(source, str(target), self.filesystem, fs.LocalFileSystem())
        if damaged := damaged_in_copy(name, target, checksums(self.filesystem, self.path)):
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            where = f"{shown(self.location or self.path)}: its file {damaged} was damaged"
            raise InputError(f"{where}; delete this checkpoint, and give the same command again to resume")


def evaluation_folder(checkpoint_path: str, step: int) -> str:
    """Returns where an evaluation beside training is stored: outside the checkpoint, which may be deleted."""
    return f"{checkpoint_path.rstrip('/').rpartition('/')[0]}/{EVALUATION_FOLDER}{step}"


def step_of(checkpoint: ray.train.Checkpoint) -> int:
    """Returns the optimizer step of a reported checkpoint."""
    return _read_json(checkpoint.filesystem, f"{checkpoint.path}/{MANIFEST_FILE}")["step"]


def write_evaluation(checkpoint: ray.train.Checkpoint, step: int, found: Evaluation) -> None:
    """Stores the evaluation of a checkpoint beside it."""
    write_evaluation_to(evaluation_folder(checkpoint.path, step), checkpoint.filesystem, found)


def write_evaluation_to(folder: str, filesystem: fs.FileSystem, found: Evaluation) -> None:
    """Stores an evaluation in a folder. The metrics come last: where they exist, all files do.

    So the metrics of an earlier evaluation are deleted first: a kill in between leaves no evaluation, which is then
    made again, and no metrics beside half a file.
    """
    filesystem.create_dir(folder, recursive=True)
    if is_file(filesystem, f"{folder}/{metrics_file(EVALUATION)}"):
        filesystem.delete_file(f"{folder}/{metrics_file(EVALUATION)}")
    for name, content in found.files(EVALUATION).items():
        with filesystem.open_output_stream(f"{folder}/{name}") as file:
            file.write(content)


def read_evaluation_from(folder: str, filesystem: fs.FileSystem) -> Evaluation | None:
    """Reads what `write_evaluation_to` has stored; returns None if it is not there, or not complete."""
    if _read_json(filesystem, f"{folder}/{metrics_file(EVALUATION)}") is None:
        return None
    return _load(folder, filesystem, EVALUATION)


def list_evaluations(storage_path: str, run_names: list[str]) -> list[tuple[int, dict[str, float]]]:
    """Returns (step, metrics) of all evaluations that were made beside training."""
    filesystem, root = open_location(storage_path)
    found = []
    for name in run_names:
        for folder in filesystem.get_file_info(fs.FileSelector(f"{root}/{name}", allow_not_found=True)):
            if folder.base_name.startswith(EVALUATION_FOLDER):
                metrics = _read_json(filesystem, f"{folder.path}/{metrics_file(EVALUATION)}")
                step = int(folder.base_name.removeprefix(EVALUATION_FOLDER))
                found += [(step, flat_metrics(metrics))] if metrics else []
    return sorted(found, key=lambda one: one[0])


def list_checkpoints(storage_path: str, run_names: list[str]) -> list[StoredCheckpoint]:
    """Returns the complete checkpoints of some runs, by step."""
    filesystem, root = open_location(storage_path)
    found = [_in_folder(filesystem, f"{root}/{name}", inside(storage_path, name)) for name in run_names]
    return sorted(chain.from_iterable(found), key=lambda checkpoint: checkpoint.step)


def _in_folder(filesystem: fs.FileSystem, path: str, location: str = "") -> list[StoredCheckpoint]:
    """Returns the complete checkpoints in the folder of a run, by step."""
    found = []
    for folder in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if folder.type == fs.FileType.Directory:
            at = inside(location, folder.base_name) if location else ""
            checkpoint = read_checkpoint_at(folder.path, filesystem, at)
            found += [checkpoint] if checkpoint else []
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def list_run_names(storage_path: str, prefix: str) -> list[str]:
    """Returns the names of the stored runs that begin with a prefix."""
    filesystem, root = open_location(storage_path)
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(folder.base_name for folder in found if folder.base_name.startswith(prefix))


def read_checkpoint(location: str) -> StoredCheckpoint | None:
    """Reads the checkpoint of a folder or URI; returns None if it is not complete."""
    filesystem, path = open_location(location)
    return read_checkpoint_at(path, filesystem, location)


def read_checkpoint_at(path: str, filesystem: fs.FileSystem, location: str = "") -> StoredCheckpoint | None:
    """Reads the checkpoint at a path of a file system; returns None if it is not complete.

    Raises:
        InputError: an earlier version of this program wrote the checkpoint.
    """
    manifest = _read_json(filesystem, f"{path}/{MANIFEST_FILE}")
    if manifest is None:
        return None
    infos = filesystem.get_file_info([f"{path}/{name}" for name in manifest["files"]])
    if [info.size for info in infos] != list(manifest["files"].values()):
        return None
    if STEP_FILE not in manifest["files"]:
        raise InputError(
            f"{location or path}: a checkpoint of an earlier version of rqa_ray, which this one cannot go on from; "
            "finish that run with the version that began it, or start anew with --overwrite_output_dir"
        )
    step = manifest["step"]
    beside = _read_json(filesystem, f"{evaluation_folder(path, step)}/{metrics_file(EVALUATION)}")
    metrics = beside or _read_json(filesystem, f"{path}/{metrics_file(EVALUATION)}")
    return StoredCheckpoint(location, path, filesystem, step, flat_metrics(metrics))


def best_checkpoints(checkpoints: list[StoredCheckpoint], metric: str, number: int) -> list[StoredCheckpoint]:
    """Returns so many of the evaluated checkpoints, or fewer, the best first (`finish.score`).

    Of a step, one alone counts: a step is stored twice if its worker died before Ray knew of the checkpoint.
    """
    by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints if metric in checkpoint.metrics}
    evaluated = list(by_step.values())
    evaluated.sort(key=lambda checkpoint: -score(checkpoint.metrics, metric, checkpoint.step))
    return evaluated[:number]


def delete_runs(storage_path: str, run_names: list[str]) -> None:
    """Deletes all that some runs stored."""
    filesystem, root = open_location(storage_path)
    for name in run_names:
        if filesystem.get_file_info(f"{root}/{name}").type == fs.FileType.Directory:
            filesystem.delete_dir(f"{root}/{name}")


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    """Returns whether a file system has a file at this path."""
    return filesystem.get_file_info(path).type == fs.FileType.File


def _load(folder: str, filesystem: fs.FileSystem, name: str) -> Evaluation:
    return Evaluation.load(name, lambda file: filesystem.open_input_file(f"{folder}/{file}"))


def _read_json(filesystem: fs.FileSystem, path: str) -> Any:
    if not is_file(filesystem, path):
        return None
    try:
        with filesystem.open_input_stream(path) as file:
            return json.loads(file.read())
    except ValueError:  # a kill has cut the file short
        return None
