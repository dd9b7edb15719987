"""Whole runs on a real Ray cluster: what a user gets, and what a user is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rqa_ray.data.formats import parse_document, parse_json
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.training.job import parse_job

ROOT = Path(__file__).parents[2]
OUTPUTS = [
    "README.md",
    "all_args.json",
    "config.json",
    "eval-predictions.jsonl",
    "eval_results.json",
    "model.safetensors",
    "modules.json",
    "test-predictions.jsonl",
    "test_results.json",
    "tokenizer.json",
    "train_results.json",
    "trainer_state.json",
]


def run(words: list[str]) -> None:
    from rqa_ray.training.train import train

    train(parse_job(words))


def command(words: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/train.py"), *words], capture_output=True, text=True, timeout=300, **options
    )


def read_json(path: Path):
    return json.loads(path.read_text())


def predictions(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}-predictions.jsonl").read_text().splitlines()]


def metrics_of_predictions(folder: Path, split: str) -> dict[str, float]:
    """The metrics computed again, from the predictions file alone."""
    lines = predictions(folder, split)
    ranked = np.array([[parse_document(doc).passage_id for doc in line["retrieved_docs"]] for line in lines])
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    return {f"{split}_{name}": value for name, value in retrieval_metrics(ranked, golds).items()}


@pytest.fixture(scope="module")
def one_worker(ray_cluster, flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one-worker") / "out"
    run([*flags, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def two_workers(ray_cluster, flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two-workers") / "out"
    run([*flags, "--num_workers", "2", "--per_device_train_batch_size", "4", "--output_dir", str(folder)])
    return folder


@pytest.fixture(params=["one_worker", "two_workers"])
def finished(request) -> Path:
    """The output folder of a finished run."""
    return request.getfixturevalue(request.param)


def test_a_run_leaves_every_file_and_no_temporary_one(finished: Path) -> None:
    assert set(OUTPUTS) <= set(os.listdir(finished))
    assert not [name for name in os.listdir(finished) if name.startswith(".")]
    for name in OUTPUTS:
        if name.endswith(".json"):
            read_json(finished / name)
    assert not list(finished.rglob("*.bin")), "a pickle"
    assert list((finished / "tensorboard").rglob("events*"))


def test_results_equal_those_of_the_predictions_file(finished: Path) -> None:
    for split in ("eval", "test"):
        results = read_json(finished / f"{split}_results.json")
        for name, value in metrics_of_predictions(finished, split).items():
            assert results[name] == pytest.approx(value, abs=1e-9), name
        assert results[f"{split}_loss"] > 0 and results[f"{split}_retr/latency/avg_latency"] > 0


def test_predictions_are_ranked_by_score_over_the_whole_corpus(finished: Path) -> None:
    for line in predictions(finished, "test"):
        scores = [document["score"] for document in line["retrieved_docs"]]
        assert len(scores) == 60 and scores == sorted(scores, reverse=True)


def test_the_state_begins_with_the_pretrained_model_and_ends_with_the_last_step(finished: Path) -> None:
    history = read_json(finished / "trainer_state.json")["log_history"]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 4, 8, 12]
    assert "test_loss" in evaluated[0] and not any("test_loss" in entry for entry in evaluated[1:])
    best = read_json(finished / "train_results.json")["best_step"]
    recalls = {entry["step"]: entry["eval_retr/document_recall/recall4"] for entry in evaluated}
    assert recalls[best] == max(recalls.values()) and best == min(s for s in recalls if recalls[s] == recalls[best])


def test_sentence_transformers_finds_the_same_passages(finished: Path, files) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(finished), device="cpu")
    documents: dict[int, Document] = {}
    for line in Path(files["full_dataset_file_path"]).read_text().splitlines():
        document = parse_document(parse_json(line))
        documents.setdefault(document.passage_id, document)
    corpus = model.encode([document.fmt_content for document in documents.values()])
    lines = predictions(finished, "eval")
    scores = model.encode([line["question"] for line in lines]) @ corpus.T
    ranked = np.array(list(documents))[np.argsort(-scores, axis=1, kind="stable")]
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    expected = retrieval_metrics(ranked[:, :60], golds)
    results = read_json(finished / "eval_results.json")
    assert results["eval_retr/document_recall/recall4"] == pytest.approx(expected["retr/document_recall/recall4"])
    assert results["eval_retr/document_ndcg/ndcg10"] == pytest.approx(expected["retr/document_ndcg/ndcg10"], abs=1e-6)


def test_a_run_that_does_not_improve_keeps_the_pretrained_weights_and_warns_once_of_a_lost_gold(
    ray_cluster, flags, files, tiny_model, tmp_path, capsys
) -> None:
    documents = Path(files["full_dataset_file_path"]).read_text().splitlines(keepends=True)
    (tmp_path / "documents.jsonl").write_text("".join(documents[:30] + documents[31:]))
    words = ["--full_dataset_file_path", str(tmp_path / "documents.jsonl"), "--learning_rate", "0", "--max_steps", "2"]
    run([*flags, *words, "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "its weights are kept" in said
    assert read_json(tmp_path / "out/train_results.json")["best_step"] == 0
    before, after = load_file(Path(tiny_model) / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in after)
    warnings = [line for line in said.splitlines() if "missing from the corpus" in line]
    assert len(warnings) == 1 and "found: eval 1; the first, " in warnings[0] and warnings[0].endswith("'doc/30'")


def test_streaming_trains_on_the_same_batches_with_one_worker_and_with_two(
    ray_cluster, flags, tmp_path, monkeypatch, capsys
) -> None:
    from rqa_ray.data import streaming

    for name, size in {"PART_BYTES": 600, "SMALLEST_PART": 600, "WINDOW_BYTES": 3_000}.items():
        monkeypatch.setattr(streaming, name, size)
    losses = []
    for workers, size in (("1", "8"), ("2", "4")):
        folder = tmp_path / workers
        words = ["--data_mode", "streaming", "--dropout", "0", "--num_workers", workers]
        run([*flags, *words, "--per_device_train_batch_size", size, "--output_dir", str(folder)])
        history = read_json(folder / "trainer_state.json")["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert len(losses[0]) == 12 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "data: train 48 questions, streamed" in capsys.readouterr().out
    assert read_json(folder / "all_args.json")["data_mode"] == "streaming"


@pytest.mark.slow
def test_all_args_repeats_the_run_to_the_bit(finished: Path, tmp_path) -> None:
    run([str(finished / "all_args.json"), "--output_dir", str(tmp_path / "again")])
    for name in ("model.safetensors", "eval-predictions.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"questions": ["a"]', ":2: not JSON"),
        ('{"questions": ["a"]}', ":2: no `gold_docs`, found keys `questions`"),
        ('{"question": "a", "gold_docs": [{"text": 3}]}', ":2: `page_content` has to be a string"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(ray_cluster, flags, files, tmp_path, content, said) -> None:
    good = Path(files["train_file"]).read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([good[0], content, good[1]]))
    with pytest.raises(InputError) as error:
        run([*flags, "--train_file", str(tmp_path / "bad.jsonl"), "--output_dir", str(tmp_path / "out")])
    assert f"{tmp_path}/bad.jsonl{said}" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_file_is_refused(ray_cluster, flags, tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="empty.jsonl: no records"):
        run([*flags, "--eval_file", str(tmp_path / "empty.jsonl"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_more_workers_than_can_ever_be_placed_are_refused_with_the_numbers(ray_cluster, flags, tmp_path) -> None:
    with pytest.raises(InputError, match="--num_workers 64: needs 64 workers with 1 CPU each, the cluster has"):
        run([*flags, "--num_workers", "64", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(ray_cluster, flags, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        run([*flags, "--output_dir", str(tmp_path)])
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train_file", "nowhere.jsonl"], "--train_file nowhere.jsonl: no such file"),
        (["--metric_for_best_model", "recall5"], "--metric_for_best_model recall5: no such metric"),
        (["--temprature", "1"], "--temprature: unknown argument; did you mean --temperature?"),
        (["--model_name_or_path", "{tmp_path}"], "not a model folder"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2_before_ray_starts(flags, tmp_path, words, said) -> None:
    words = [word.format(tmp_path=tmp_path) for word in words]
    ended = command([*flags, "--output_dir", str(tmp_path / "out"), *words])
    assert ended.returncode == 2 and ended.stdout == ""
    assert said in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def stored_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    from rqa_ray.training.checkpoints import read_checkpoint

    found = [read_checkpoint(str(path.parent)) for path in folder.glob("checkpoints/*/*/manifest.json")]
    return [checkpoint.step for checkpoint in found if checkpoint]


def kill_when(words: list[str], folder: Path, is_time) -> None:
    """Starts a run of its own and kills all of it, Ray included, at a moment."""
    process = subprocess.Popen([sys.executable, str(ROOT / "jobs/train.py"), *words], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    import psutil

    victims = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass


MOMENTS = {
    "before the first checkpoint": lambda folder, scratch: (folder / "run.json").exists(),
    "in the middle of the second epoch": lambda folder, scratch: 8 in stored_steps(folder),
    "between evaluation and save": lambda folder, scratch: any(scratch.glob("rqa_ray-*/checkpoint-8")),
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("before the first checkpoint", marks=pytest.mark.slow),
        "in the middle of the second epoch",
        pytest.param("between evaluation and save", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(flags, one_worker, tmp_path, moment, monkeypatch) -> None:
    folder, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))  # where a worker writes a checkpoint before Ray stores it
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Ray's sockets need a short path
    words = [*flags, "--output_dir", str(folder)]
    kill_when(words, folder, lambda: MOMENTS[moment](folder, scratch))
    assert not (folder / "model.safetensors").exists()
    run([*words, "--resume_from_checkpoint", "true"])
    steps = [entry["step"] for entry in read_json(folder / "trainer_state.json")["log_history"] if "loss" in entry]
    assert steps == list(range(1, 13))
    before, after = load_file(one_worker / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    last = [
        sorted(output.glob("checkpoints/*/*/manifest.json"), key=lambda path: read_json(path)["step"])[-1].parent
        for output in (one_worker, folder)
    ]
    final = [load_file(checkpoint / "model/model.safetensors") for checkpoint in last]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


@pytest.mark.slow
def test_an_evaluation_that_a_stop_put_off_is_made_when_the_run_goes_on(
    ray_cluster, flags, one_worker, tmp_path, monkeypatch
) -> None:
    from rqa_ray.training import train as run_module

    def stopped_at_step_8(config):
        from rqa_ray.training.report_callback import ReportCallback
        from rqa_ray.training.worker import train_worker

        ReportCallback.is_stop_asked = lambda self: self.trainer.state.global_step == 8
        return train_worker(config)

    def evaluations(folder: Path) -> dict[int, float]:
        history = read_json(folder / "trainer_state.json")["log_history"]
        return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}

    folder = tmp_path / "out"
    words = [*flags, "--output_dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_worker", stopped_at_step_8)
        run(words)
    assert max(stored_steps(folder)) == 8 and 8 not in evaluations(folder)
    run([*words, "--resume_from_checkpoint", "true"])
    assert evaluations(folder) == pytest.approx(evaluations(one_worker))
    before, after = load_file(one_worker / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_lack_of_memory_is_one_line_of_rays_page_about_it() -> None:
    from ray.train import WorkerGroupError

    from rqa_ray.training.driver import reason_of

    def of(failure: str, late: list[str] | None = None) -> str:
        return reason_of(WorkerGroupError("failed", {1: Exception(failure)}), late)

    page = "A worker health check failed.\nWorker(...)\n4 worker(s) were killed: the node running low on memory.\nmore"
    assert of(page).startswith("4 worker(s) were killed") and "\n" not in of(page)
    assert of("Traceback\nValueError: x") == "training failed on rank 1: Traceback\nValueError: x"
    assert of("Traceback\nrqa_ray.training.uploads.StorageError: /full: no space left") == "/full: no space left"
    waited = of("RuntimeError: Timed out waiting 1ms", ["rank 0 (node a, process 1)"])
    assert waited.startswith("rank 0 (node a, process 1) did not answer")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_says_how_to_go_on(flags, tmp_path, number, code) -> None:
    words = [*flags, "--max_steps", "5000", "--eval_steps", "5000", "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while 0 not in stored_steps(tmp_path / "out"):
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(3)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "state saved" in said and "--resume_from_checkpoint true" in said
    assert max(stored_steps(tmp_path / "out")) > 0
