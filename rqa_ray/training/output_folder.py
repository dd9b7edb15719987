"""Decides where a run's files go: a folder, a URI, or a place under --storage_path if a job runs in a temporary copy.

A run works in a local folder. If the output is a URI, the folder begins with the small files of the URI. It is copied
to the URI after every change, results last.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pyarrow import fs

from rqa_ray.credentials import MASK
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import absolute, in_temporary_copy, inside, open_location, refuse_temporary, shown
from rqa_ray.training.job import Job

RUN_FILE = "run.json"  # the names of this folder's Ray runs, for resuming
CHECKPOINTS_FOLDER = "checkpoints"
DEMO_FOLDER = "demo_data"


def with_local_output(job: Job) -> Job:
    """Returns the job with a local folder as its output_dir, and with `location` as the place that the user knows.

    Raises:
        InputError: a relative folder in Ray's copy of the working directory, or a URI that cannot be opened.
    """
    location, storage = job.output_dir, job.settings.storage_path
    if not storage:
        refuse_temporary(location, ", or --storage_path to place it under")
    elif in_temporary_copy(location):
        location = inside(storage, location)
        job.notes.append(f"--output_dir {job.output_dir}: placed under --storage_path, in {shown(location)}")
    if "://" not in location:
        return replace(job, location=location, training=job.training | {"output_dir": location})
    name = shown(location).rstrip("/").rpartition("/")[2].removeprefix(f"{MASK}@")
    parent = tempfile.mkdtemp(prefix="rqa_ray-output-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    local = Path(parent) / name
    try:
        filesystem, root = open_location(location)
        for info in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            local.mkdir(parents=True, exist_ok=True)
            if info.type == fs.FileType.Directory:  # the folder is known to exist; its contents stay there
                (local / info.base_name).mkdir(exist_ok=True)
            elif info.type == fs.FileType.File:
                fs.copy_files(info.path, str(local / info.base_name), filesystem, fs.LocalFileSystem())
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error)
        raise InputError(f"--output_dir {shown(location)}: cannot be opened ({reason})") from None
    return replace(job, location=location, training=job.training | {"output_dir": str(local)})


def storage_of(job: Job) -> str:
    """Returns where checkpoints go: a URI, or an absolute path, because workers have another working directory."""
    return absolute(job.settings.storage_path or inside(job.location, CHECKPOINTS_FOLDER))


def push(job: Job) -> None:
    """Copies the local folder to the URI if the output is one, with the results files last."""
    if job.location == job.output_dir:
        return
    filesystem, root = open_location(job.location)
    local = Path(job.output_dir)
    paths = sorted(path for path in local.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: path.name.endswith("_results.json")):
        target = f"{root}/{path.relative_to(local)}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        fs.copy_files(str(path), target, fs.LocalFileSystem(), filesystem)


def delete_files(job: Job, names: Iterable[str]) -> None:
    """Deletes files of the output that an earlier run has left, if they are there."""
    for name in names:
        (Path(job.output_dir) / name).unlink(missing_ok=True)
    delete_remote(job, names)


def delete_remote(job: Job, names: Iterable[str]) -> None:
    """Deletes files and folders of the URI if the output is one."""
    if job.location == job.output_dir:
        return
    filesystem, root = open_location(job.location)
    for name in names:
        info = filesystem.get_file_info(f"{root}/{name}")
        if info.type == fs.FileType.Directory:
            filesystem.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            filesystem.delete_file(info.path)
