"""Checkpoints from a worker's disk to storage, beside training; a storage that is away for a while is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from rqa_ray.cluster.probe import PATIENCE_SECONDS
from rqa_ray.places import NO_SPACE

LONGEST_WAIT_SECONDS = 20.0  # between two attempts


class StorageError(RuntimeError):
    """A checkpoint could not be stored."""


class StorageAway(StorageError):
    """Storage does not answer, which may pass."""


class Uploads:
    """In the place of `ray.train.report`: returns before the checkpoint is stored, and deletes it when it is.

    One upload at a time: a slow storage must not fill the worker's disk.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.storage = ray.train.get_context().get_storage()
        self.tell = tell
        self._idle = threading.Event()
        self._idle.set()

    def __call__(self, metrics: dict[str, Any], checkpoint: Any, validation: bool = False) -> None:
        if checkpoint is not None:
            self._idle.wait()
            self._idle.clear()
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self.upload,
            validation=validation,
        )

    def wait(self) -> None:
        """Returns when all is stored, or has failed."""
        self._idle.wait()

    def upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Stores a checkpoint; called in a thread of Ray Train.

        Raises:
            StorageError: storage is full, or was away for too long.
        """
        place = self.storage.experiment_fs_path
        started, wait = time.monotonic(), 1.0
        try:
            while True:
                try:
                    return self.storage.persist_current_checkpoint(checkpoint, name)
                except Exception as error:  # of any file system
                    reason = str(error).strip().splitlines()[0]
                    if is_full(error):
                        raise StorageError(f"{place}: no space left for {name} ({reason})") from None
                    if time.monotonic() - started + wait > PATIENCE_SECONDS:
                        raise StorageError(
                            f"{place}: could not be written for {PATIENCE_SECONDS:g} s ({reason})"
                        ) from None
                    if wait == 1.0:
                        self.tell(f"warning: {place} cannot be written ({reason}); trying for {PATIENCE_SECONDS:g} s")
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        finally:
            self._idle.set()


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full: by its number, or in words where a library has dropped the number."""
    words = str(error)
    return getattr(error, "errno", None) in NO_SPACE or "No space left" in words or "quota exceeded" in words.lower()
