"""Temporary folders do not stay: neither after a block, nor after a kill."""

import subprocess
import sys
import tempfile
from pathlib import Path

from rqa_ray.scratch import scratch_folder

OWNER = """
import sys, time
from rqa_ray.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_a_killed_process_is_deleted_and_that_of_a_living_one_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    owners = [subprocess.Popen([sys.executable, "-c", OWNER], **pipes) for _ in range(2)]
    killed, living = (Path(owner.stdout.readline().strip()) for owner in owners)
    (killed / "model").write_text("large")
    owners[0].kill()
    owners[0].wait()
    assert (killed / "model").exists()
    with scratch_folder() as own, scratch_folder():
        assert not killed.parent.exists()
        assert living.is_dir() and Path(own).is_dir() and not list(Path(own).iterdir())
    owners[1].communicate()
    assert not list(tmp_path.iterdir())
