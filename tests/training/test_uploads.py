"""Uploads wait for storage that is away; an error that cannot pass ends the run at once, and so does a stop."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from rqa_ray.training import uploads
from rqa_ray.training.uploads import StorageError, Uploads


class Clock:
    """A clock on which time passes only while the code sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(uploads, "time", clock)
    return clock


def uploader(monkeypatch, persist, is_stop_asked=lambda: False) -> tuple[Uploads, list[str]]:
    storage = SimpleNamespace(experiment_fs_path="storage", persist_current_checkpoint=persist)
    monkeypatch.setattr(uploads.ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: storage))
    said: list[str] = []
    return Uploads(said.append, is_stop_asked), said


def raising(error: Exception, until: float = 1e9, clock: Clock | None = None):
    def persist(checkpoint, name):
        if clock is None or clock.now < until:
            raise error
        return "stored"

    return persist


def here(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(path=str(folder))


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "away"), TimeoutError()], ids=["with text", "without"])
def test_a_storage_that_comes_back_costs_time_and_one_line(monkeypatch, clock, tmp_path, error):
    upload, said = uploader(monkeypatch, raising(error, 100, clock))
    assert upload.upload(here(tmp_path), "checkpoint-1") == "stored" and 100 <= clock.now < 125
    assert len(said) == 1 and "storage cannot be written" in said[0] and "300 s" in said[0]


def test_a_storage_that_stays_away_ends_the_run_after_five_minutes(monkeypatch, clock, tmp_path):
    upload, _ = uploader(monkeypatch, raising(TimeoutError()))
    with pytest.raises(StorageError, match=r"storage: could not be written for 30\d s \(TimeoutError\)"):
        upload.upload(here(tmp_path), "checkpoint-1")


def test_a_stop_is_heard_while_storage_is_away(monkeypatch, clock, tmp_path):
    upload, _ = uploader(monkeypatch, raising(OSError("away")), lambda: clock.now > 50)
    with pytest.raises(StorageError, match="could not be written for 5. s"):
        upload.upload(here(tmp_path), "checkpoint-1")
    upload.wait()  # the worker may end


def test_a_checkpoint_that_is_gone_is_no_storage_that_is_away(monkeypatch, clock, tmp_path):
    upload, said = uploader(monkeypatch, raising(FileNotFoundError(errno.ENOENT, "no such file")))
    with pytest.raises(StorageError, match="gone: deleted before checkpoint-3 was stored"):
        upload.upload(here(tmp_path / "gone"), "checkpoint-3")
    assert clock.now == 0 and not said


def test_a_full_storage_is_not_waited_for(monkeypatch, clock, tmp_path):
    upload, _ = uploader(monkeypatch, raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StorageError, match="no space left for checkpoint-1"):
        upload.upload(here(tmp_path), "checkpoint-1")
    assert clock.now == 0
