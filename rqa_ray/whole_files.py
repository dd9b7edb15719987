"""Files that are whole or not there: written beside and renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rqa_ray.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # a full disk, a used up quota
ALL_ARGS_FILE = "all_args.json"  # the arguments of a run, beside its results


def in_temporary_copy(path: str) -> bool:
    """Whether a path lies in the copy of its working directory that Ray makes for a job, and deletes."""
    return "://" not in path and "/runtime_resources/working_dir_files/" in os.path.abspath(path)


def refuse_temporary(output_dir: str, or_else: str = "") -> None:
    """Raises InputError for an output folder that would be deleted with such a copy; `or_else` is one more way out."""
    if in_temporary_copy(output_dir):
        raise InputError(
            f"--output_dir {output_dir}: relative, and this job runs in a temporary copy of the working directory; "
            f"give a folder that all nodes share, or a URI (s3://...){or_else}"
        )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files and folders are moved into `folder` when the block ends well, else deleted."""
    staging = folder / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            target = folder / path.relative_to(staging)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Writes beside and renames; of two writers at once the later one wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """The value as a JSON file."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
