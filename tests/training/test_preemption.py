"""A node is taken away with notice: no finished step is made again, and the end is that of an undisturbed run."""

import json
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.nodes import ROOT, Nodes
from tests.training.test_faults import SCRIPT, newest

STEPS = 240
# (phase, step, rank, seconds of a step, seconds of some texts of an evaluation)
MOMENTS = [
    ("before the first checkpoint", 0, 1, 0.25, 0.0),
    ("between forward and backward", 6, 0, 4.0, 0.0),
    ("while saving", 40, 0, 0.25, 0.0),
    ("during evaluation", 40, 1, 0.25, 5.0),
    ("during the finish", STEPS, 1, 0.0, 0.0),
]


@pytest.fixture(scope="module")
def cluster():
    nodes = Nodes()
    yield nodes
    nodes.stop()
    assert not nodes.left()


@pytest.fixture(scope="module")
def words(train_flags) -> list[str]:
    words = [*train_flags, "--num_workers", "2", "--per_device_train_batch_size", "4", "--max_steps", str(STEPS)]
    return [*words, "--eval_steps", "40", "--logging_steps", "40"]


@pytest.fixture(scope="module")
def undisturbed(cluster, words, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    cluster.fill(2)
    ended = cluster.run(["jobs/train.py", *words, "--output_dir", str(folder)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    return newest(folder, STEPS) | {"chosen": load_file(folder / "model.safetensors")["embeddings.LayerNorm.bias"]}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[0].replace(" ", "_"))
def test_a_node_that_goes_away_with_notice_costs_no_finished_step(
    cluster, words, undisturbed, tmp_path, moment
) -> None:
    phase, step, rank, of_step, of_texts = moment
    cluster.fill(3)  # one takes the place of the lost one
    event, log, folder = tmp_path / "event.json", tmp_path / "log", tmp_path / "out"
    command = [sys.executable, "-u", SCRIPT, str(event), f"{phase}@{step}@{rank}@notice", *words]
    slow = {"RQA_RAY_STEP_SECONDS": str(of_step), "RQA_RAY_TEXTS_SECONDS": str(of_texts)}
    if of_step > 1:
        command += ["--max_steps", "24"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--output_dir", str(folder)],
            env={**cluster.environment, **slow},
            stdout=file,
            stderr=file,
            cwd=ROOT,
        )
    while process.poll() is None and not event.exists():
        time.sleep(0.1)
    found = json.loads(event.read_text())
    raylet = psutil.Process(found["killed"])
    raylet_children = [child for child in raylet.children(recursive=True)]
    time.sleep(max(0.0, found["deadline"] - time.time()))
    for lost in [raylet, *raylet_children]:
        if lost.is_running():
            lost.kill()
    assert process.wait(timeout=400) == 0, log.read_text()[-3000:]
    steps = [int(line.split()[-1]) for line in (tmp_path / "steps").read_text().splitlines()]
    print(phase, "made again:", len(steps) - len(set(steps)), "of", len(steps))
    print(log.read_text())
    assert len(steps) == len(set(steps))
    if of_step <= 1:
        final = newest(folder, STEPS)
        assert all(torch.equal(final[name], undisturbed[name]) for name in final)
