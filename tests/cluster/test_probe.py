"""What would fail later, produced for real on real nodes: each gives one line, before anything is read or written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import Nodes, can_mount

needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount: `unshare -m` fails")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes(head_cpus=1)
    nodes.add()
    yield nodes
    nodes.stop()


@pytest.fixture
def words(files, tiny_model, tmp_path) -> list[str]:
    (tmp_path / "shared").mkdir()
    named = {**files, "model_name_or_path": tiny_model, "output_dir": str(tmp_path / "shared/out"), "num_workers": "2"}
    return [word for name, value in named.items() for word in (f"--{name}", value)]


def refused(cluster: Nodes, words: list[str], job: str = "jobs/preflight.py") -> str:
    """The one line that a job says before it ends with code 2 and leaves nothing."""
    folder = Path(words[words.index("--output_dir") + 1])
    ended = cluster.run([job, *words])
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert not folder.exists() and not os.listdir(folder.parent)
    return ended.stderr


def test_a_job_that_can_run_is_told_what_it_will_do(cluster, words, tmp_path) -> None:
    ended = cluster.run(
        ["jobs/preflight.py", *words, "--per_device_train_batch_size", "8", "--hard_neg_ratio", "0.25"]
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 nodes: storage is written and read by all, inputs are read by all, versions are equal" in ended.stdout
    assert "batch: 2 workers x 8 = 16 questions, up to 4 hard negatives, 20 candidates each" in ended.stdout
    assert "steps: 200, which are 3,200 questions" in ended.stdout and "all checks passed" in ended.stdout
    assert not os.listdir(tmp_path / "shared")


def test_storage_that_cannot_be_written(cluster, words) -> None:
    said = refused(cluster, [*words, "--storage_path", "/proc/nowhere"], "jobs/train.py")
    assert "--storage_path /proc/nowhere: cannot be written" in said


@pytest.mark.slow
def test_a_bucket_that_nobody_serves(cluster, words) -> None:
    uri = "s3://key:secret@nowhere/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    said = refused(cluster, [*words, "--storage_path", uri])
    assert "--storage_path s3://" in said and "endpoint_override=127" not in said.partition("(")[0]


def test_more_workers_than_the_nodes_can_ever_hold(cluster, words) -> None:
    said = refused(cluster, [*words, "--num_workers", "9"])
    assert (
        "--num_workers 9: needs 9 workers with 1 CPU each, the cluster has nodes of 2 x 1 CPUs and 0 GPUs; 2 fit"
        in said
    )


@pytest.mark.slow
@needs_mounts
def test_storage_that_one_node_does_not_share(cluster, words, tmp_path) -> None:
    node = cluster.add(hidden=tmp_path / "shared")
    said = refused(cluster, words)
    cluster.lose(node)
    assert "not usable from node" in said and "what the driver has written there is not seen" in said


@needs_mounts
def test_an_input_that_one_node_does_not_have(cluster, words, files) -> None:
    node = cluster.add(hidden=Path(files["train_file"]).parent)
    said = refused(cluster, words)
    cluster.lose(node)
    assert (
        f"--full_dataset_file_path {files['full_dataset_file_path']}: cannot be read" in said or "--train_file" in said
    )
    assert ", on node" in said and "put it where all nodes can read it" in said


def test_a_node_with_another_version(cluster, words, tmp_path) -> None:
    """Its Python finds the metadata of an older transformers first, as after an install into another folder."""
    metadata = tmp_path / "older/transformers-5.20.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.20.0\n")
    node = cluster.add(PYTHONPATH=f"{tmp_path / 'older'}:{cluster.environment['PYTHONPATH']}")
    said = refused(cluster, words)
    cluster.lose(node)
    assert "transformers 5.20.0, the driver has " in said and said.startswith("error: node ")
