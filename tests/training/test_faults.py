"""A node or a worker is killed in the middle of a run, at moments that a log proves."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes import Nodes

SCRIPT = "tests/training/faults.py"
# (phase, step, rank): an epoch is 7 steps, an evaluation is due every 4. Rank 0 saves and uploads.
MOMENTS = [
    ("before the first checkpoint", 0, 0),
    ("before the first checkpoint", 0, 1),
    ("forward", 0, 1),
    ("forward", 5, 0),
    ("between forward and backward", 2, 0),
    ("between forward and backward", 6, 1),
    ("between backward and optimizer", 1, 1),
    ("between backward and optimizer", 9, 0),
    ("between optimizer and the end of the step", 3, 1),
    ("between optimizer and the end of the step", 10, 0),
    ("between steps", 4, 1),
    ("between epochs", 7, 0),
    ("between epochs", 7, 1),
    ("during evaluation", 4, 0),
    ("during evaluation", 8, 1),
    ("while saving", 4, 0),
    ("while saving", 8, 0),
    ("while uploading", 8, 0),
    ("between upload and report", 4, 0),
    ("after the last step", 12, 1),
]
IN_CI = ("while uploading", 8, 0)


@pytest.fixture(scope="module")
def words(flags) -> list[str]:
    return [*flags, "--num_workers", "2", "--per_device_train_batch_size", "4", "--max_failures", "3"]


def newest(folder: Path, step: int = 12) -> dict[str, torch.Tensor]:
    """Returns the weights of the newest complete checkpoint, which has to be at the last step."""
    from rqa_ray.training.checkpoints import read_checkpoint

    whole = [read_checkpoint(str(path.parent)) for path in folder.glob("checkpoints/*/*/manifest.json")]
    last = max((checkpoint for checkpoint in whole if checkpoint), key=lambda checkpoint: checkpoint.step)
    assert last.step == step
    return load_file(Path(last.path) / "model/model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(two_workers) -> dict[str, torch.Tensor]:
    return newest(two_workers)


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=() if moment == IN_CI else pytest.mark.slow) for moment in MOMENTS],
    ids=lambda moment: "-".join(map(str, moment)).replace(" ", "_"),
)
def test_a_lost_node_changes_nothing(nodes, words, undisturbed, tiny_model, tmp_path, moment) -> None:
    event, folder = run_with_fault(nodes, words, tmp_path, moment, "raylet")
    assert event["name"] == "raylet"
    assert_nothing_changed(nodes, folder, undisturbed, tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("forward", 5, 1), ("during evaluation", 8, 1), ("while saving", 4, 0)])
def test_a_killed_worker_changes_nothing(nodes, words, undisturbed, tiny_model, tmp_path, moment) -> None:
    event, folder = run_with_fault(nodes, words, tmp_path, moment, "worker")
    assert event["killed"] == event["pid"]
    assert_nothing_changed(nodes, folder, undisturbed, tiny_model)


def run_with_fault(cluster: Nodes, words: list[str], tmp_path: Path, moment: tuple, victim: str) -> tuple[dict, Path]:
    """Returns what was killed when, and the output folder of the run, which has restarted and ended well."""
    log, folder = tmp_path / "event.json", tmp_path / "out"
    fault = "@".join(map(str, [*moment, victim]))
    cluster.fill(3)  # one takes the place of the lost one
    ended = cluster.run([SCRIPT, str(log), fault, *words, "--output_dir", str(folder)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    event = json.loads(log.read_text())
    assert (event["phase"], event["step"], event["rank"]) == moment
    assert "4 nodes: storage is written and read by all, inputs are read by all, versions are equal" in ended.stdout
    assert "restarted on 2 workers" in ended.stdout
    return event, folder


def assert_nothing_changed(
    cluster: Nodes, folder: Path, undisturbed: dict[str, torch.Tensor], tiny_model: str
) -> None:
    """Checks that the weights are those of the undisturbed run and not the first ones, and that no worker is left."""
    final, first = newest(folder), load_file(Path(tiny_model) / "model.safetensors")
    assert all(torch.equal(final[name], undisturbed[name]) for name in final)
    assert any(not torch.equal(final[name], first[name]) for name in final)
    assert (folder / "model.safetensors").exists()
    deadline = time.monotonic() + 30
    while (left := workers_of(cluster)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def workers_of(cluster: Nodes) -> list[str]:
    """Returns the names of a cluster's processes that train or wait to train."""
    names = [" ".join(process.cmdline())[:80] for process in cluster.left()]
    return [name for name in names if "RayTrainWorker" in name or "TrainController" in name]
