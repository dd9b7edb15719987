"""Input files and checkpoints in real buckets, from an S3 server on this machine."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from rqa_ray.data.files import find_files
from rqa_ray.data.records import read_records
from rqa_ray.errors import InputError
from rqa_ray.training.job import parse_job

KEY, SECRET = "AKPLANTED", "plantedS3cret"


@pytest.fixture(scope="module")
def bucket():
    """Returns the URI of a bucket, and what follows the `?` in its URIs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.1)
        filesystem, path = fs.FileSystem.from_uri(f"s3://{KEY}:{SECRET}@data?{query}")
        filesystem.create_dir(path)
        yield f"s3://{KEY}:{SECRET}@data", query
    finally:
        server.kill()
        server.wait()


def upload(bucket, name: str, content: bytes) -> None:
    filesystem, path = fs.FileSystem.from_uri(f"{bucket[0]}/{name}?{bucket[1]}")
    with filesystem.open_output_stream(path, compression=None) as file:
        file.write(content)


def test_files_globs_and_folders_of_a_bucket_are_found_and_read(bucket) -> None:
    uri, query = bucket
    for number in range(3):
        record = json.dumps({"page_content": f"text {number}"}).encode() + b"\n"
        upload(bucket, f"shards/part-{number}.jsonl.gz", gzip.compress(record))
    upload(bucket, "shards/notes.txt", b"")
    expected = [f"{uri}/shards/part-{number}.jsonl.gz?{query}" for number in range(3)]
    assert find_files([f"{uri}/shards?{query}"], "train_file") == expected
    assert find_files([f"{uri}/shards/*-[12].jsonl.gz?{query}"], "train_file") == expected[1:]
    texts = [record.page_content for path in expected for _, record in read_records(path, "documents")]
    assert texts == ["text 0", "text 1", "text 2"]
    with pytest.raises(InputError, match="no such file"):
        find_files([f"{uri}/nowhere.jsonl?{query}"], "train_file")


def test_a_run_that_was_moved_into_a_bucket_reads_from_a_bucket_and_goes_on_there(
    bucket, two_workers, train_flags, files, capsys
) -> None:
    from rqa_ray.training.train import train

    uri, query = bucket
    output = f"{uri}/runs/out?{query}"
    filesystem, root = fs.FileSystem.from_uri(output)
    fs.copy_files(str(two_workers), root, fs.LocalFileSystem(), filesystem)
    words = [*train_flags, "--output_dir", output]
    for flag, path in files.items():
        upload(bucket, f"run/{os.path.basename(path)}", Path(path).read_bytes())
        words += [f"--{flag}", f"{uri}/run/{os.path.basename(path)}?{query}"]
    with pytest.raises(InputError, match="is not empty"):
        train(parse_job(words))
    filesystem.delete_file(f"{root}/model.safetensors")
    capsys.readouterr()
    train(parse_job([*words, "--resume_from_checkpoint", "true", "--max_steps", "14"]))
    said = "".join(capsys.readouterr())
    assert "resuming from step 12" in said and KEY not in said and SECRET not in said
    stored = {info.path[len(root) + 1 :] for info in filesystem.get_file_info(fs.FileSelector(root, recursive=True))}
    assert {"model.safetensors", "eval_results.json", "run.json", "all_args.json", "trainer_state.json"} <= stored
    before = {str(path.relative_to(two_workers)) for path in two_workers.rglob("*")}
    assert any(name.startswith("tensorboard/events") for name in stored - before)
    assert any(name.startswith("checkpoints/") and "model/model.safetensors" in name for name in stored - before)
    for file, is_right in (
        (
            "run.json",
            lambda kept: kept["storage_path"] == "checkpoints" and kept["location"] == "s3://***@data/runs/out",
        ),
        ("trainer_state.json", lambda kept: kept["log_history"][-1]["step"] == 14),
    ):
        with filesystem.open_input_stream(f"{root}/{file}") as stream:
            kept = json.loads(stream.read())
        assert is_right(kept), kept
    for name in stored:
        if filesystem.get_file_info(f"{root}/{name}").is_file:
            with filesystem.open_input_stream(f"{root}/{name}", compression=None) as stream:
                content = stream.read()
            assert KEY.encode() not in content and SECRET.encode() not in content, name
