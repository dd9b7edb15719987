"""What output_dir knows of its runs: whether it may be used, and where its last run can go on.

Each run has a Ray run name of its own, since Ray resumes a name in silence. The names are kept in `run.json`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.places import ALL_ARGS_FILE, absolute, read_json, shown, write_json
from rqa_ray.training import checkpoints as stored
from rqa_ray.training import summary as outputs
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import delete_remote, push, storage_of


@dataclass
class RunRecord:
    """What output_dir keeps of its Ray runs, so that the same command can go on."""

    storage_path: str
    run_names: list[str]
    resume_from: str | None = None  # a checkpoint folder that the newest run starts from
    files: list[str] = field(default_factory=list)  # what the finished run wrote, relative to output_dir

    def save(self, output_dir: str) -> None:
        write_json(Path(output_dir) / outputs.RUN_FILE, vars(self))


def check_output_dir(job: Job) -> None:
    """Refuses a folder in use, unless the user said what to do with it."""
    folder = Path(job.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {job.location}: is a file")
    if job.resume and job.resume != "true" and stored.read_checkpoint(job.resume) is None:
        raise InputError(f"--resume_from_checkpoint {job.resume}: no whole checkpoint of this program")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    in_use = found - {outputs.DEMO_FOLDER}  # written before the data was found to be wrong
    if in_use and not (job.resume or job.settings.overwrite_output_dir):
        raise InputError(
            f"--output_dir {shown(job.location)}: is not empty; choose another, or go on with its run by "
            f"{job.resume_flag}, or delete it by --overwrite_output_dir"
        )


def open_run(job: Job) -> RunRecord:
    """Prepares output_dir for a new Ray run; one that resumes starts from the newest whole checkpoint."""
    folder = Path(job.output_dir)
    previous = read_json(folder / outputs.RUN_FILE)
    name = new_run_name(folder)
    record = RunRecord(storage_of(job), [name])
    folder.mkdir(parents=True, exist_ok=True)
    if job.resume and job.resume != "true":
        record.resume_from = absolute(job.resume)
    elif job.resume and previous:
        before = RunRecord(**previous)
        record = RunRecord(before.storage_path, [*before.run_names, name], before.resume_from, before.files)
        whole = stored.list_checkpoints(before.storage_path, before.run_names)
        record.resume_from = whole[-1].location if whole else before.resume_from
        changed = changed_settings(read_json(folder / ALL_ARGS_FILE) or {}, job.to_config())
        if changed:
            print(f"warning: goes on with other settings than it began with: {changed}")
    elif previous:
        delete_run(job, RunRecord(**previous))
    if record.resume_from:
        checkpoint = stored.read_checkpoint(record.resume_from)
        print(f"resuming from step {checkpoint.step if checkpoint else '?'} in {record.resume_from}")
    elif job.resume:
        print("note: no checkpoint to resume from; starting anew")
    record.save(job.output_dir)
    write_json(folder / ALL_ARGS_FILE, job.to_config())
    push(job)
    return record


def new_run_name(folder: Path) -> str:
    """A name that no other run has."""
    return f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def delete_run(job: Job, record: RunRecord) -> None:
    """Deletes what an earlier run left in its folder and its storage, and nothing else."""
    stored.delete_runs(record.storage_path, record.run_names)
    folders = [outputs.TENSORBOARD_FOLDER, outputs.CHECKPOINTS_FOLDER]
    if not job.settings.demo_size:  # else just written anew
        folders.append(outputs.DEMO_FOLDER)
    files = [*record.files, outputs.BAD_RECORDS_FILE]
    for name in folders:
        shutil.rmtree(Path(job.output_dir) / name, ignore_errors=True)
    for name in files:
        (Path(job.output_dir) / name).unlink(missing_ok=True)
    delete_remote(job, [*folders, *files])


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names whose values differ from those the run began with."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
