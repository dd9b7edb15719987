"""The model's folder on every node: one that lacks it, or joins later, gets the driver's, at the same path.

A hub model is downloaded where the driver runs, and clusters have more nodes than that.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import ray

from rqa_ray.cluster.connection import has_other_nodes


def share_model(folder: str) -> ray.ObjectRef | None:
    """A copy of a model folder in the object store; None on a cluster that has and will have one node."""
    if not has_other_nodes():
        return None
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return ray.put(files)


def bring_model(folder: str, copy: ray.ObjectRef | None) -> None:
    """Writes the copy to the folder where this node does not have it; of two writers at once the first one wins."""
    if copy is None or (os.path.isdir(folder) and os.listdir(folder)):
        return
    staging = Path(f"{folder.rstrip('/')}.{secrets.token_hex(4)}.tmp")
    try:
        for name, content in ray.get(copy).items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
        try:
            staging.rename(folder)  # an empty folder is replaced
        except OSError:
            if not os.path.isdir(folder) or not os.listdir(folder):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
