"""A model's folder on nodes that lack it."""

import subprocess
from pathlib import Path

import pytest

from tests.nodes import Nodes, can_mount


@pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")
def test_a_run_trains_on_a_node_that_does_not_have_the_model(flags, tiny_model, tmp_path) -> None:
    cluster = Nodes()
    try:
        cluster.add(hidden=Path(tiny_model))  # the only node that may work
        ended: subprocess.CompletedProcess = cluster.run(
            ["jobs/train.py", *flags, "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert (tmp_path / "out/model.safetensors").exists()
    finally:
        cluster.stop()
