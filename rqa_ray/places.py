"""Works with paths and URIs, and writes files under another name first, so that each is complete or absent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import NativeFile, fs

from rqa_ray.credentials import masked, masked_values
from rqa_ray.errors import InputError, first_line
from rqa_ray.texts import printable

HUB = "hf://"  # Hugging Face's hub; its addresses are not percent-encoded
ALL_ARGS_FILE = "all_args.json"  # name of the file with the arguments of a run, beside its results
STAGING = ".staging"  # folder inside an output folder: its files are moved there when all are complete
REPORT_FILE = "report.html"  # name of the page about a run or an evaluation, beside its results


def in_temporary_copy(path: str) -> bool:
    """Returns whether a path is in the copy of the working directory that Ray makes for a job and deletes later."""
    return "://" not in path and "/runtime_resources/working_dir_files/" in os.path.abspath(path)


def refuse_temporary(output_dir: str, or_else: str = "") -> None:
    """Raises InputError for an output folder that would be deleted with such a copy.

    `or_else` names one more remedy.
    """
    if in_temporary_copy(output_dir):
        raise InputError(
            f"--output_dir {output_dir}: relative, and this job runs in a temporary copy of the working directory; "
            f"give a folder that all nodes share, or a URI (s3://...){or_else}"
        )


def check_local_folder(output_dir: str) -> None:
    """Raises InputError if a job cannot write files into a local folder of that name, which need not exist yet."""
    refuse_temporary(output_dir)
    if "://" in output_dir:
        raise InputError(f"--output_dir {shown(output_dir)}: a URI; this job writes to local folders only")
    try:
        os.listdir(output_dir)
    except FileNotFoundError:
        pass
    except OSError as error:  # a file, below a file, a name that is too long, no permission
        raise InputError(f"--output_dir {output_dir}: cannot be a folder ({error.strerror})") from None
    check_writable(output_dir)


def check_writable(output_dir: str) -> None:
    """Raises InputError if no file can be made in a folder, or above it where the folder does not exist yet.

    A file is made, because the permissions of a folder do not say whether its file system is read-only.
    """
    folder = Path(absolute(output_dir))
    try:
        place = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: cannot be written ({error.strerror}); choose another") from None


def refuse_files_of_others(output: Path, names: Iterable[str]) -> None:
    """Raises InputError if a folder without a record of an earlier run has files that the job would replace.

    Files beside `STAGING` are those of a run of the job that was killed while it moved them there.
    """
    if (output / STAGING).exists():
        return
    for name in names:
        if (output / name).exists():
            raise InputError(
                f"--output_dir {output}: has {name}, which no finished run of this job wrote; choose another folder, "
                "or replace it with --overwrite_output_dir"
            )


@contextmanager
def staged(folder: Path, last: str = "") -> Iterator[Path]:
    """Yields a folder to write into; its contents are moved into `folder` if the block succeeds, else deleted.

    The file `last` is moved after all others: where it is, all are.
    """
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.rglob("*"), key=lambda path: (path == staging / last, path)):
            target = folder / path.relative_to(staging)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Writes a file under another name and renames it; if two processes write at once, the later one wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as a JSON file, without the credentials of its URIs."""
    write_whole(path, (json.dumps(masked_values(value), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; returns None if there is no file.

    Raises:
        InputError: the file contains something else.
    """
    found = read_any_json(path, None)
    if path.is_file() and not isinstance(found, dict):
        raise InputError(f"{path}: has to be a JSON object; a program or a person has changed the file")
    return found


def read_any_json(path: Path, default: Any) -> Any:
    """Reads a JSON file; returns the default if there is no file, raises InputError if the file is no JSON."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a program or a person has changed the file") from None


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a path or URI, and the path in it."""
    if "://" in location:
        filesystem, path = fs.FileSystem.from_uri(location)
        return filesystem, path.rstrip("/")
    return fs.LocalFileSystem(), os.path.abspath(location)


@contextmanager
def hub_errors(location: str) -> Iterator[None]:
    """Raises OSError, as other file systems do, if Hugging Face's hub cannot be reached."""
    if not location.startswith(HUB):
        yield
        return
    from huggingface_hub.utils import httpx  # under the name that stays the same in all versions of the hub's client

    try:
        yield
    except httpx.HTTPError as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"the hub cannot be reached: {first_line(error)}") from error


def inside(location: str, name: str) -> str:
    """Returns the path or URI of a name in a folder."""
    if "://" not in location:
        return os.path.join(location, name)
    base, question_mark, query = location.partition("?")
    return f"{base.rstrip('/')}/{name}{question_mark}{query}"


def within(location: str, folder: str) -> str | None:
    """Returns a location's path relative to a folder (path or URI): the reverse of `inside`; None if it is elsewhere.

    Links are followed: what a link in the folder leads to is elsewhere.
    """
    if "://" in location or "://" in folder:
        (base, _, query), (parent, _, other) = location.partition("?"), folder.partition("?")
        parent = parent.rstrip("/") + "/"
        return base.removeprefix(parent) if base.startswith(parent) and query == other else None
    relative = os.path.relpath(os.path.realpath(location), os.path.realpath(folder))
    return None if relative.split(os.sep)[0] == os.pardir else relative


def refuse_among_inputs(argument: str, output: str, names: Iterable[str], files: Iterable[str]) -> None:
    """Raises InputError if a job would write among its own inputs, where it may replace one or read its own output.

    `names` are the inputs as the user named them, `files` the files that were found there.
    """
    for file in files:
        if within(file, output) is not None:
            raise InputError(f"--{argument} {shown(output)}: has the input {shown(file)} in it; choose another folder")
    for name in names:
        if within(output, name) is not None:
            raise InputError(f"--{argument} {shown(output)}: is in the input {shown(name)}; choose another folder")


def with_suffix(location: str, suffix: str) -> str:
    """Returns a path or URI with a suffix added to its last name."""
    base, question_mark, query = location.partition("?") if "://" in location else (location, "", "")
    return base.rstrip("/") + suffix + question_mark + query


def shown(location: str) -> str:
    """Returns a path or URI as every message shows it: without credentials, query and control characters."""
    return printable(masked(location.partition("?")[0]) if "://" in location else location)


def shown_files(files: Sequence[str]) -> str:
    """Returns the first of some files as messages show it, and how many more there are."""
    more = f" and {len(files) - 1:,} more file{'s' * (len(files) > 2)}" if len(files) > 1 else ""
    return shown(files[0]) + more


def storage_for_ray(location: str) -> dict[str, Any]:
    """Returns the storage arguments of Ray's RunConfig; Ray's dashboard shows the path, so it has no credentials."""
    if masked(location) == location:
        return {"storage_path": location}
    filesystem, path = open_location(location)
    return {"storage_path": path, "storage_filesystem": filesystem}


def exists(path: str) -> bool:
    """Returns whether there is such a file."""
    filesystem, inner = open_location(path)
    return filesystem.get_file_info(inner).type == fs.FileType.File


def open_file(path: str) -> io.BufferedReader:
    """Opens a file for reading bytes, decompressed by its suffix."""
    filesystem, inner = open_location(path)
    return io.BufferedReader(filesystem.open_input_stream(inner, compression="detect"))


def open_random_access(path: str) -> NativeFile:
    """Opens a file that can be read at any place, as Parquet needs."""
    filesystem, inner = open_location(path)
    return filesystem.open_input_file(inner)


def file_content(path: str) -> str:
    """Returns what tells the content of a file from any other, to be compared with an earlier answer.

    Of a local file, a hash of its bytes: the same after a touch or a move, another after any edit (1 s for 1 GB). Of
    any other, to avoid the download, its address, size and time of last change, which its storage sets.
    """
    filesystem, inner = open_location(path)
    if not isinstance(filesystem, fs.LocalFileSystem):
        info = filesystem.get_file_info(inner)
        return f"{shown(path)} {info.size} {info.mtime_ns}"
    digest = hashlib.blake2b(digest_size=16)
    with open(inner, "rb") as file:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def file_size(path: str) -> int:
    """Returns the stored size of a file (bytes), without decompressing it."""
    with open_random_access(path) as file:
        return file.size()


def absolute(location: str) -> str:
    """Returns a URI as given, or an absolute path."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def push_folder(folder: str, location: str) -> None:
    """Copies a folder of a worker to a URI."""
    filesystem, root = open_location(location)
    filesystem.create_dir(root, recursive=True)
    fs.copy_files(folder, root, fs.LocalFileSystem(), filesystem)
