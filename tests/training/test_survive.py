"""Other failures on clusters: storage that is full or away, a rank that hangs, nodes that are taken away or added."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.nodes import ROOT, Nodes, behind_a_mount, can_mount
from tests.training.test_faults import newest
from tests.training.test_submit import RAY

needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")


def start(words: list[str], log: Path, prefix: tuple[str, ...] = (), **options) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-u", str(ROOT / "jobs/train.py"), *words]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, **options)


def wait_for(is_there: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def end(process: subprocess.Popen, log: Path, seconds: float = 240) -> str:
    """Returns what a run printed before it ended."""
    process.wait(timeout=seconds)
    return log.read_text()


def manifests(folder: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["step"] for path in folder.glob("*/*/manifest.json"))


@needs_mounts
@pytest.mark.slow
def test_full_storage_is_one_line_and_the_run_goes_on_when_there_is_space(flags, tmp_path) -> None:
    storage, log = tmp_path / "small", tmp_path / "log"
    storage.mkdir()
    words = [*flags, "--storage_path", str(storage), "--output_dir", str(tmp_path / "out")]
    said = end(start(words, log, (*behind_a_mount(storage, "100k"),)), log)
    assert re.search(r"error: \S*small\S*: no space left.* \(", said), said[-2000:]
    assert "Traceback" not in said and "--resume_from_checkpoint true" in said
    process = start([*words, "--resume_from_checkpoint", "true"], log)
    assert process.wait(timeout=240) == 0, log.read_text()[-2000:]


@pytest.mark.slow
def test_storage_that_is_away_for_a_while_is_waited_for(flags, tmp_path) -> None:
    storage, log = tmp_path / "mounted", tmp_path / "log"
    storage.mkdir()
    words = [*flags, "--max_steps", "400", "--eval_steps", "100", "--storage_path", str(storage)]
    process = start([*words, "--output_dir", str(tmp_path / "out")], log)
    wait_for(lambda: manifests(storage), process, log)
    storage.rename(tmp_path / "away")
    wait_for(lambda: "cannot be written" in log.read_text(), process, log)
    assert not storage.exists()
    (tmp_path / "away").rename(storage)
    said = end(process, log)
    assert process.returncode == 0, said[-2000:]
    assert 400 in manifests(storage)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(flags, tmp_path) -> None:
    log = tmp_path / "log"
    words = ["--max_steps", "100000", "--eval_steps", "100000", "--num_workers", "2", "--ddp_timeout", "10"]
    process = start([*flags, *words, "--output_dir", str(tmp_path / "out")], log)
    wait_for(lambda: re.search(r"step [\d,]+/", log.read_text()), process, log)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in child.name()
    ] or [child for child in psutil.Process(process.pid).children(recursive=True) if "ray::RayTrainWo" in child.name()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGSTOP)
    said = end(process, log)
    assert process.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"process {workers[1].pid}) did not answer" in line and "Traceback" not in said, said[-3000:]
    assert f"process {workers[0].pid}" not in line


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.stop()
    assert not nodes.left()


@pytest.mark.slow
def test_a_node_that_will_be_taken_away_costs_no_step(cluster, flags, tmp_path) -> None:
    """The node is drained, as an autoscaler does it; `test_preemption.py` sends SIGTERM.

    The state is saved before, and the lost node does not count as a failure.
    """
    for _ in range(2):
        cluster.add()
    log, storage = tmp_path / "log", tmp_path / "storage"
    words = ["--max_steps", "12000", "--eval_steps", "12000", "--storage_path", str(storage), "--logging_steps", "100"]
    process = start([*flags, *words, "--output_dir", str(tmp_path / "out")], log, env=cluster.environment)
    wait_for(lambda: re.search(r"step [\d,]+/", log.read_text()), process, log)
    node = cluster.run(["-c", NODE_OF_WORKER]).stdout.split()[-1]
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--node-id", node]
    drain = [RAY, "drain-node", "--address", cluster.address, *notice, "--deadline-remaining-seconds", "20"]
    subprocess.run(drain, env=cluster.environment, check=True, capture_output=True)
    said = end(process, log)
    assert process.returncode == 0, said[-3000:]
    [left] = re.findall(r"a node is taken away: state saved after step (\d+); starting workers on other nodes", said)
    assert f"resuming from step {left} " in said and int(left) > 0, "a step at which no evaluation was due"


# Prints the node of the training worker.
NODE_OF_WORKER = """
import ray
from ray.util.state import list_actors
ray.init(logging_level="error", log_to_driver=False)
[worker] = [actor for actor in list_actors(filters=[("state", "=", "ALIVE")]) if "RayTrainWorker" in actor.class_name]
print(worker.node_id)
"""


@pytest.mark.slow
def test_a_run_grows_when_a_node_joins_and_keeps_its_global_batch(flags, tiny_model, tmp_path) -> None:
    cluster = Nodes()
    try:
        cluster.add()
        shared = ["--global_batch_size", "8", "--dropout", "0", "--optim", "sgd", "--learning_rate", "0.01"]
        words = [*flags, *shared, "--max_steps", "4000", "--eval_steps", "250", "--logging_steps", "250"]
        fixed, log = tmp_path / "fixed", tmp_path / "log"
        ended = cluster.run(["jobs/train.py", *words, "--num_workers", "1", "--output_dir", str(fixed)])
        assert ended.returncode == 0, ended.stderr[-3000:]
        words = [*words, "--num_workers", "1:2", "--output_dir", str(tmp_path / "grown")]
        process = start(words, log, env=cluster.environment)
        wait_for(lambda: manifests(tmp_path / "grown/checkpoints"), process, log)
        cluster.add()
        said = end(process, log, 400)
        assert process.returncode == 0 and "restarted on 2 workers, from step" in said, said[-3000:]
        first = load_file(Path(tiny_model) / "model.safetensors")
        alone, grown = newest(fixed, 4000), newest(tmp_path / "grown", 4000)
        moved = torch.cat([(alone[name] - first[name]).flatten() for name in alone])
        apart = torch.cat([(alone[name] - grown[name]).flatten() for name in alone])
        assert moved.norm() > 1e-3 and apart.norm() < 1e-3 * moved.norm(), (moved.norm(), apart.norm())
    finally:
        cluster.stop()
