"""A node gets notice, and is gone 30 s later: no finished step is made again, and the weights are the same."""

import json
from pathlib import Path

import pytest
import torch

from tests.nodes import Nodes
from tests.training.soak import ENVIRONMENT, again
from tests.training.test_faults import SCRIPT, newest

STEPS = 200
# (phase, step, rank), seconds of a step, seconds of some texts of an evaluation
MOMENTS = [
    (("between forward and backward", 6, 0), "0.25", "0"),
    (("during evaluation", 40, 1), "0.25", "10"),
    (("before the first checkpoint", 0, 1), "0.25", "0"),
    (("while saving", 40, 0), "0.25", "0"),
    (("during the finish", STEPS, 1), "0", "0"),
]


@pytest.fixture(scope="module")
def cluster():
    nodes = again(lambda: Nodes(**ENVIRONMENT))
    again(lambda: nodes.fill(2))
    yield nodes
    nodes.stop()
    assert not nodes.left()


@pytest.fixture(scope="module")
def words(train_flags) -> list[str]:
    words = [*train_flags, "--num_workers", "2", "--per_device_train_batch_size", "4"]
    return [*words, "--max_steps", str(STEPS), "--eval_steps", "40", "--logging_steps", "40"]


@pytest.fixture(scope="module")
def undisturbed(cluster, words, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    ended = cluster.run(["jobs/train.py", *words, "--output_dir", str(folder)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    return newest(folder, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step_seconds", "texts_seconds"), MOMENTS, ids=[of[0][0] for of in MOMENTS])
def test_no_finished_step_is_lost(
    cluster, words, undisturbed, tmp_path, monkeypatch, moment, step_seconds, texts_seconds
) -> None:
    slow = {"RQA_RAY_STEP_SECONDS": step_seconds, "RQA_RAY_TEXTS_SECONDS": texts_seconds}
    monkeypatch.setattr(cluster, "environment", cluster.environment | slow)
    again(lambda: cluster.fill(3))  # one takes the place of the lost one
    event, folder = tmp_path / "event.json", tmp_path / "out"
    fault = "@".join(map(str, [*moment, "notice"]))
    ended = cluster.run([SCRIPT, str(event), fault, *words, "--output_dir", str(folder)], timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(event.read_text())["name"] == "ray"
    repeated = repeated_steps(tmp_path / "steps")
    print(moment, "steps made again:", repeated, [line for line in ended.stdout.splitlines() if "from step" in line])
    final = newest(folder, STEPS)
    assert all(torch.equal(final[name], undisturbed[name]) for name in final)
    assert not repeated


def repeated_steps(log: Path) -> list[int]:
    """Returns the steps that were finished more than once."""
    steps = [int(line.split()[-1]) for line in log.read_text().splitlines()]
    return sorted({step for step in steps if steps.count(step) > 1})
