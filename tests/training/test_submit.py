"""Jobs submitted to a cluster with token authentication: what users type, and where their files are at the end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nodes import ROOT, Nodes

RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def cluster():
    """One node only: several nodes on one machine share a folder for uploads, and delete each other's files."""
    nodes = Nodes(head_cpus=2)
    yield nodes
    nodes.stop()
    assert not nodes.left()


def ray(cluster: Nodes, *words: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a Ray command against the cluster's job server."""
    environment = {**cluster.environment, "RAY_ADDRESS": f"http://127.0.0.1:{cluster.dashboard}"}
    command = [RAY, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def submit(cluster: Nodes, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    runtime = ["--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]
    return ray(cluster, "job", "submit", *runtime, *options, "--", "python", *words)


def steps_of(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints under an output folder."""
    from rqa_ray.training.checkpoints import read_checkpoint

    found = [read_checkpoint(str(path.parent)) for path in folder.glob("checkpoints/*/*/manifest.json")]
    return sorted(checkpoint.step for checkpoint in found if checkpoint)


def test_a_training_job_leaves_its_outputs_where_it_was_told_to(cluster, flags, tmp_path) -> None:
    ended = submit(cluster, "jobs/train.py", *flags, "--output_dir", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert (tmp_path / "out/model.safetensors").exists()
    assert "best step" in ended.stdout and "Traceback" not in ended.stdout


@pytest.mark.slow
def test_a_search_job_leaves_its_outputs_where_it_was_told_to(cluster, flags, tmp_path) -> None:
    search = ["--tune_learning_rate", "1e-3", "1e-4", "1e-5", "--search_alg", "grid"]
    ended = submit(cluster, "jobs/tune.py", *flags, *search, "--output_dir", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert (tmp_path / "out/trials.csv").exists() and (tmp_path / "out/model.safetensors").exists()


@pytest.mark.slow
def test_a_relative_output_dir_is_refused_or_placed_under_storage_path(cluster, flags, tmp_path) -> None:
    refused = submit(cluster, "jobs/train.py", *flags, "--output_dir", "out")
    assert refused.returncode == 1 and "error: --output_dir out: relative, and this job runs in a" in refused.stdout
    storage = ["--storage_path", str(tmp_path / "shared"), "--max_steps", "2"]
    placed = submit(cluster, "jobs/train.py", *flags, *storage, "--output_dir", "runs/out")
    assert placed.returncode == 0, placed.stdout[-3000:]
    assert (tmp_path / "shared/runs/out/model.safetensors").exists()


@pytest.mark.slow
def test_the_same_submit_goes_on_when_the_head_was_lost(flags, tmp_path) -> None:
    folder = tmp_path / "out"
    words = [*flags, "--max_steps", "1000", "--eval_steps", "50", "--output_dir", str(folder)]
    words += ["--resume_from_checkpoint", "true"]
    lost = Nodes(head_cpus=2)
    try:
        assert submit(lost, "jobs/train.py", *words, options=("--no-wait",)).returncode == 0
        deadline = time.monotonic() + 120
        while max(steps_of(folder), default=0) < 100 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        lost.stop()  # SIGKILL to the head and all that it runs
    step = max(steps_of(folder))
    assert 100 <= step < 1000
    again = Nodes(head_cpus=2)
    try:
        ended = submit(again, "jobs/train.py", *words)
    finally:
        again.stop()
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"resuming from step {step}" in ended.stdout and max(steps_of(folder)) == 1000


@pytest.mark.slow
def test_a_stopped_job_has_saved_its_last_finished_step_and_goes_on_from_it(cluster, flags, tmp_path) -> None:
    folder = tmp_path / "out"
    words = [*flags, "--max_steps", "3000", "--eval_steps", "3000", "--output_dir", str(folder)]
    again = ["--resume_from_checkpoint", "true"]
    submitted = submit(cluster, "jobs/train.py", *words, *again, options=("--no-wait", "--submission-id", "stopped"))
    assert submitted.returncode == 0, submitted.stdout
    deadline = time.monotonic() + 120
    while 0 not in steps_of(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(3)
    began = time.monotonic()
    ray(cluster, "job", "stop", "stopped", "--no-wait")
    while max(steps_of(folder)) == 0 and time.monotonic() < began + 30:
        time.sleep(0.1)
    step = max(steps_of(folder))
    assert step > 0 and time.monotonic() - began < 10
    while True:
        asked = ray(cluster, "job", "status", "stopped")
        if "was stopped" in asked.stdout:
            break
        assert time.monotonic() < began + 60, asked
    logs = ray(cluster, "job", "logs", "stopped").stdout
    assert f"stopped after step {step}, state saved" in logs
    shorter = ["--max_steps", str(step + 2)]
    ended = submit(cluster, "jobs/train.py", *words, *again, *shorter)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"resuming from step {step}" in ended.stdout
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, step + 3))
