"""Uploads checkpoints from a worker's disk to storage while training goes on; waits if storage is away for a while."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from rqa_ray.cluster.probe import PATIENCE_SECONDS
from rqa_ray.errors import first_line
from rqa_ray.stops import NO_SPACE

LONGEST_WAIT_SECONDS = 20.0  # longest wait between two attempts
LAST_TRIES_SECONDS = 5.0  # how long uploads are tried after a stop


class StorageError(RuntimeError):
    """A checkpoint could not be stored."""


class StorageAway(StorageError):
    """Storage does not answer; it may answer again later."""


class Uploads:
    """Replaces `ray.train.report`: returns before the checkpoint is stored, and deletes the local copy afterwards.

    There is one upload at a time, so that a slow storage does not fill the worker's disk.
    """

    def __init__(self, tell: Callable[[str], None], is_stop_asked: Callable[[], bool]) -> None:
        self.storage = ray.train.get_context().get_storage()
        self.tell, self.is_stop_asked = tell, is_stop_asked
        self.seconds = 0.0  # that the last upload took
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
        """Waits until all uploads have succeeded or failed."""
        self._idle.wait()

    def upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Stores a checkpoint; runs in a thread of Ray Train.

        Raises:
            StorageError: storage is full, was away for too long, or is away after a stop.
        """
        storage = self.storage.experiment_fs_path
        started, wait, patience = time.monotonic(), 1.0, PATIENCE_SECONDS
        try:
            while True:
                try:
                    stored = self.storage.persist_current_checkpoint(checkpoint, name)
                    self.seconds = time.monotonic() - started
                    return stored
                except Exception as error:  # each file system raises its own errors
                    reason = first_line(error)
                    if not os.path.isdir(checkpoint.path):
                        raise StorageError(f"{checkpoint.path}: deleted before {name} was stored") from None
                    if is_full(error):
                        raise StorageError(f"{storage}: no space left for {name} ({reason})") from None
                    if wait == 1.0:
                        self.tell(f"warning: {storage} cannot be written ({reason}); trying for {patience:g} s")
                next_try = time.monotonic() + wait
                while time.monotonic() < next_try:
                    time.sleep(1.0)
                    waited = time.monotonic() - started
                    if patience == PATIENCE_SECONDS and self.is_stop_asked():
                        patience, next_try = waited + LAST_TRIES_SECONDS, 0.0
                    if waited > patience:
                        raise StorageError(f"{storage}: could not be written for {waited:.0f} s ({reason})")
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        finally:
            self._idle.set()


def is_full(error: BaseException) -> bool:
    """Returns whether an error says that a disk is full: by number, or in words if a library dropped the number."""
    words = str(error)
    return getattr(error, "errno", None) in NO_SPACE or "No space left" in words or "quota exceeded" in words.lower()
