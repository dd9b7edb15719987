"""Copies the model's folder to nodes that do not have it, at the same path as on the driver.

A model from the hub is downloaded on the driver's node only. Nodes that join later need the folder too.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import ray

from rqa_ray.cluster.connection import has_other_nodes


def share_model(folder: str) -> ray.ObjectRef | None:
    """Puts a copy of a model folder into Ray's object store; returns None where all work runs on this node."""
    if not has_other_nodes():
        return None
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return ray.put(files)


def bring_model(folder: str, copy: ray.ObjectRef | None) -> None:
    """Writes the copy to `folder` if this node does not have it.

    If two processes write at once, the first one wins.
    """
    if copy is None or (os.path.isdir(folder) and os.listdir(folder)):
        return
    staging = Path(f"{folder.rstrip('/')}.{secrets.token_hex(4)}.tmp")
    try:
        for name, content in ray.get(copy).items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
        try:
            staging.rename(folder)  # replaces an empty folder
        except OSError:
            if not os.path.isdir(folder) or not os.listdir(folder):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
