"""Runs jobs as their users do: in this process on the tests' cluster, or in one that is killed half-way."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(job: str, *words: object) -> None:
    """The job in this process, on the tests' cluster."""
    before, sys.argv = sys.argv, [f"jobs/{job}.py", *map(str, words)]
    try:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    finally:
        sys.argv = before


def refused(capsys, job: str, *words: object) -> str:
    """What the job says when it refuses its words."""
    with pytest.raises(SystemExit) as stop:
        run(job, *words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    return said


def kill_half_way(job: str, log: Path, *words: object) -> list[str]:
    """Kills the job and all of its Ray when two shards are in the log; returns the shards that it has encoded."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", SMALL_SHARDS, str(ROOT), job, *map(str, words)]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300  # other work may share the cores
        while not log.is_file() or len(log.read_text().splitlines()) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "it encodes nothing"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return logged_shards(log)


def logged_shards(log: Path) -> list[str]:
    """The shards that were encoded, in their order."""
    return [json.loads(line)["shard"] for line in log.read_text().splitlines()]


# Small shards, so that there are several; everything else is the job.
SMALL_SHARDS = """
import runpy, sys
root, job = sys.argv[1:3]
sys.path.insert(0, root)
from rqa_ray.corpus import plan
plan.FEWEST_ROWS = 4
sys.argv = [f"{root}/jobs/{job}.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
