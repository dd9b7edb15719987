"""A model's folder is copied to nodes that do not have it."""

import shutil

import pytest

from tests.nodes import Nodes, can_mount


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")
def test_a_run_trains_on_a_node_that_does_not_have_the_model(flags, tiny_model, tmp_path) -> None:
    cluster, models = Nodes(), tmp_path / "models"
    shutil.copytree(tiny_model, models / "tiny")
    words = [*flags, "--model_name_or_path", str(models / "tiny"), "--max_steps", "2"]
    try:
        cluster.add(hidden=models)  # the only node that may work
        ended = cluster.run(["jobs/train.py", *words, "--output_dir", str(tmp_path / "out")])
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert (tmp_path / "out/model.safetensors").exists()
    finally:
        cluster.stop()
