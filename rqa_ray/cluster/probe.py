"""Checks all nodes before a job starts, so that what would fail later is found in seconds.

Every node writes to the storage and reads from it, looks for each input file, and tells its versions.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rqa_ray.errors import InputError, first_line, last_line
from rqa_ray.places import open_location, shown

TIMEOUT_SECONDS = 20.0
PATIENCE_SECONDS = 300.0  # how long storage may be away
WAIT_SECONDS = 2.0  # between two attempts
FILES_LOOKED_FOR = 100  # files of each input that a node looks for
PACKAGES = ("ray", "torch", "transformers", "pyarrow", "rqa_ray")


def check_nodes(inputs: dict[str, list[str]], storage_path: str) -> str:
    """Checks storage, inputs and versions on every node of the cluster; returns a line that says what was checked.

    `inputs` maps each flag to its files.

    Raises:
        InputError: names the first thing that is wrong.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    token = secrets.token_hex(4)
    with _written(storage_path, token):
        if len(nodes) == 1:
            return "storage can be written"
        probe = ray.remote(num_cpus=0, max_retries=0)(look_around)
        found = {}
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            answer = probe.options(scheduling_strategy=here).remote(inputs, storage_path, token)
            found[name] = answer
        own = versions()
        for name, answer in found.items():
            try:
                seen = ray.get(answer, timeout=TIMEOUT_SECONDS)
            except GetTimeoutError:
                raise InputError(f"{name}: no answer in {TIMEOUT_SECONDS:g} s; is it lost or overloaded?") from None
            except RayError as error:
                reason = last_line(error)
                raise InputError(f"{name}: cannot run this program ({reason}); install it on every node") from None
            _compare(name, seen, own, storage_path)
    return f"{len(nodes)} nodes: storage is written and read by all, inputs are read by all, versions are equal"


def wait_for_storage(storage_path: str) -> None:
    """Waits until storage can be written again.

    Raises:
        InputError: storage cannot be written after 5 minutes.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if "://" in storage_path or os.path.isdir(storage_path):
                with _written(storage_path, secrets.token_hex(4)):
                    return
        except InputError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise InputError(f"--storage_path {shown(storage_path)}: the folder no longer exists")
        time.sleep(WAIT_SECONDS)


def look_around(inputs: dict[str, list[str]], storage_path: str, token: str) -> dict[str, Any]:
    """Returns what one node sees.

    `versions` are its packages, `problem` is the first input that it cannot read, `storage` says what is wrong with
    storage.
    """
    problem = None
    for flag, paths in inputs.items():
        for path in paths[:FILES_LOOKED_FOR]:
            problem = problem or _unreadable(path, f"--{flag} {path}")
    storage = None
    try:
        filesystem, root = open_location(storage_path)
        if filesystem.get_file_info(f"{root}/{_probe_file(token)}").type != fs.FileType.File:
            storage = "this node does not see the file that the driver has written"
        else:
            _write(filesystem, f"{root}/{_probe_file(token)}.{secrets.token_hex(4)}")
    except Exception as error:  # each file system raises its own errors
        storage = first_line(error)
    return {"versions": versions(), "problem": problem, "storage": storage}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that have to be equal on all nodes."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def within_seconds(work: Callable[[], Any], what: str) -> Any:
    """Returns the result of work that may hang, such as a call to a storage that does not answer.

    Raises:
        InputError: the work took too long; the line begins with `what`.
    """
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if not result:
        raise InputError(f"{what}: no answer within {TIMEOUT_SECONDS:g} s")
    if "error" in result:
        raise result["error"]
    return result["value"]


def _compare(name: str, seen: dict[str, Any], own: dict[str, str], storage_path: str) -> None:
    for package, here in own.items():
        there = seen["versions"].get(package, here)
        if there != here:
            raise InputError(f"{name}: {package} {there}, the driver has {here}; install the same on every node")
    if seen["storage"]:
        raise InputError(
            f"--storage_path {shown(storage_path)}: not usable from {name} ({seen['storage']}); "
            "it has to be a folder that all nodes share, or a URI (s3://...)"
        )
    if seen["problem"]:
        raise InputError(f"{seen['problem']}, on {name}; put it where all nodes can read it")


@contextlib.contextmanager
def _written(storage_path: str, token: str) -> Iterator[None]:
    """Keeps a file in storage while the nodes look for it.

    Removes it afterwards, with the folders that were made for it.
    """
    flag = f"--storage_path {shown(storage_path)}"
    missing = None
    if "://" not in storage_path:
        folders = [folder for folder in (Path(storage_path), *Path(storage_path).parents) if not folder.exists()]
        missing = folders[-1] if folders else None

    def write() -> tuple[fs.FileSystem, str]:
        filesystem, root = open_location(storage_path)
        if "://" not in storage_path:
            filesystem.create_dir(root, recursive=True)
        _write(filesystem, f"{root}/{_probe_file(token)}")
        return filesystem, root

    try:
        filesystem, root = within_seconds(write, flag)
    except (OSError, ValueError, ImportError) as error:
        _remove(missing)
        raise InputError(f"{flag}: cannot be written ({first_line(error)})") from None
    try:
        yield
    finally:
        for info in filesystem.get_file_info(fs.FileSelector(root)):
            if info.base_name.startswith(_probe_file(token)):
                filesystem.delete_file(info.path)
        _remove(missing)


def _remove(missing: Path | None) -> None:
    """Removes an empty folder and the empty folders in it."""
    if missing and missing.is_dir():
        for folder, _, _ in os.walk(missing, topdown=False):
            os.rmdir(folder)


def _write(filesystem: fs.FileSystem, path: str) -> None:
    with filesystem.open_output_stream(path) as file:
        file.write(b"rqa_ray")
    with filesystem.open_input_stream(path) as file:
        if file.read() != b"rqa_ray":
            raise OSError("reading returns other bytes than were written")


def _probe_file(token: str) -> str:
    return f".rqa_ray-preflight-{token}"


def _unreadable(path: str, what: str) -> str | None:
    try:
        filesystem, inner = open_location(path)
        with filesystem.open_input_stream(inner) as file:
            file.read(1)
    except Exception as error:  # each file system raises its own errors
        return f"{what}: cannot be read ({first_line(error)})"
    return None
