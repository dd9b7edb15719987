"""Problems of a node give one line before anything is read or written: tested in parts, and on real nodes."""

import os
from pathlib import Path

import pytest

from rqa_ray.cluster import probe, workers
from rqa_ray.errors import InputError
from tests.jobs import run
from tests.nodes import Nodes, can_mount

needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")


@pytest.fixture
def words(files, tiny_model, tmp_path) -> list[str]:
    (tmp_path / "shared").mkdir()
    named = {**files, "model_name_or_path": tiny_model, "output_dir": str(tmp_path / "shared/out"), "num_workers": "2"}
    return [word for name, value in named.items() for word in (f"--{name}", value)]


def refused(nodes: Nodes, words: list[str]) -> str:
    """Returns the one line that a job prints before it ends with code 2 and leaves nothing."""
    folder = Path(words[words.index("--output_dir") + 1])
    ended = nodes.run(["jobs/preflight.py", *words])
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert not folder.exists() and not os.listdir(folder.parent)
    return ended.stderr


def test_a_job_that_can_run_is_told_what_it_will_do(ray_cluster, words, capsys, tmp_path) -> None:
    run("preflight", *words, "--per_device_train_batch_size", "8", "--hard_neg_ratio", "0.25")
    said = capsys.readouterr().out
    assert "storage can be written" in said
    assert "batch: 2 workers x 8 = 16 pairs, up to 4 hard negatives, 20 candidates for each" in said
    assert "steps: 20, which are 320 pairs" in said and "all checks passed" in said
    assert not os.listdir(tmp_path / "shared")


@needs_mounts
def test_an_input_that_one_node_does_not_have(nodes, words, files) -> None:
    node = nodes.add(hidden=Path(files["train_file"]).parent)
    said = refused(nodes, words)
    nodes.lose(node)
    assert (
        f"--full_dataset_file_path {files['full_dataset_file_path']}: cannot be read" in said or "--train_file" in said
    )
    assert ", on node" in said and "put it where all nodes can read it" in said


@pytest.mark.slow
@needs_mounts
def test_storage_that_one_node_does_not_share(nodes, words, tmp_path) -> None:
    node = nodes.add(hidden=tmp_path / "shared")
    said = refused(nodes, words)
    nodes.lose(node)
    assert "not usable from node" in said and "this node does not see the file that the driver has written" in said


@pytest.mark.slow
def test_a_bucket_that_nobody_serves(nodes, words) -> None:
    uri = "s3://key:secret@nowhere/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    said = refused(nodes, [*words, "--storage_path", uri])
    assert "--storage_path s3://" in said and "endpoint_override=127" not in said.partition("(")[0]


@pytest.fixture
def one_node(monkeypatch) -> None:
    monkeypatch.setattr(probe.ray, "nodes", lambda: [{"Alive": True}])


def test_storage_that_can_be_written_is_left_as_it_was(one_node, tmp_path) -> None:
    assert probe.check_nodes({}, str(tmp_path / "new/storage")) == "storage can be written"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("error", [PermissionError("read-only"), OSError()], ids=["with text", "without"])
def test_storage_that_cannot_be_written(one_node, tmp_path, monkeypatch, error) -> None:
    def write(*_) -> None:
        raise error

    monkeypatch.setattr(probe, "_write", write)
    reason = str(error) or "OSError"
    with pytest.raises(InputError, match=rf"^--storage_path {tmp_path}/new: cannot be written \({reason}\)$"):
        probe.check_nodes({}, str(tmp_path / "new"))
    assert not os.listdir(tmp_path)


def test_a_storage_that_comes_back_is_waited_for(tmp_path, monkeypatch) -> None:
    storage = tmp_path / "storage"
    monkeypatch.setattr(probe.time, "sleep", lambda _: storage.mkdir())
    probe.wait_for_storage(str(storage))
    assert not os.listdir(storage)


def test_what_a_node_sees_is_said_by_flag_and_node(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    seen = probe.look_around({"train_file": [str(tmp_path / "file"), str(tmp_path / "none")]}, str(tmp_path), "0")
    assert seen["problem"].startswith(f"--train_file {tmp_path}/none: cannot be read (")
    assert seen["storage"] == "this node does not see the file that the driver has written"
    own = probe.versions()
    with pytest.raises(InputError, match="^--storage_path s: not usable from node 1 .this node does not see the file"):
        probe._compare("node 1", seen, own, "s")
    with pytest.raises(InputError, match="none: cannot be read .*, on node 1; put it where all nodes can read it"):
        probe._compare("node 1", {**seen, "storage": None}, own, "s")
    older = {**seen["versions"], "transformers": "5.20.0"}
    with pytest.raises(InputError, match="^node 1: transformers 5.20.0, the driver has "):
        probe._compare("node 1", {**seen, "versions": older}, own, "s")


def test_more_workers_than_the_nodes_can_ever_hold(monkeypatch) -> None:
    monkeypatch.setattr(workers, "nodes_now", lambda: [{"CPU": 1.0}] * 2)
    monkeypatch.setattr(workers, "nodes_to_come", lambda: [])
    with pytest.raises(InputError) as raised:
        workers.plan_workers(9, None)
    assert str(raised.value) == (
        "--num_workers 9: needs 9 workers with 1 CPU each, the cluster has nodes of 2 x 1 CPUs and 0 GPUs; 2 fit"
    )
