"""Whole runs on a real Ray cluster: what a user gets, and what a user is told."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from rqa_ray.data.formats import parse_document, parse_json
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document, question_key
from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.evaluation.predictions import read_predictions
from tests.conftest import SMALL_WINDOWS, STREAMED, write_lines
from tests.conftest import train as run
from tests.jobs import refused

ROOT = Path(__file__).parents[2]
OUTPUTS = [
    "README.md",
    "all_args.json",
    "config.json",
    "eval-predictions.jsonl",
    "eval_results.json",
    "hybrid.json",
    "report.html",
    "model.safetensors",
    "modules.json",
    "predictions-passages.jsonl",
    "test-predictions.jsonl",
    "test_results.json",
    "tokenizer.json",
    "train_results.json",
    "trainer_state.json",
]


def read_json(path: Path):
    return json.loads(path.read_text())


def metrics_of_predictions(folder: Path, split: str) -> dict[str, float]:
    """Computes the metrics again, from the predictions files alone; ten passages do not tell recall@100."""
    lines = read_predictions(folder, split)
    ranked = np.array([[parse_document(doc).passage_id for doc in line["retrieved_docs"]] for line in lines])
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    metrics = retrieval_metrics(ranked, golds).items()
    return {f"{split}_{name}": value for name, value in metrics if not name.endswith("recall100")}


def evaluations(folder: Path) -> dict[int, dict]:
    """Returns the entries of the history that have metrics, by step."""
    history = read_json(folder / "trainer_state.json")["log_history"]
    return {entry["step"]: entry for entry in history if "eval_loss" in entry}


def manifests(folder: Path) -> list[Path]:
    """Returns the manifests of the stored checkpoints, by step."""
    return sorted(folder.glob("checkpoints/*/*/manifest.json"), key=lambda path: read_json(path)["step"])


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
    for line in read_predictions(finished, "test"):
        scores = [document["score"] for document in line["retrieved_docs"]]
        assert len(scores) == 10 and scores == sorted(scores, reverse=True)


def test_the_state_begins_with_the_pretrained_model_and_ends_with_the_last_step(finished: Path) -> None:
    history = read_json(finished / "trainer_state.json")["log_history"]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 4, 8, 12]
    assert "test_loss" in evaluated[0] and not any("test_loss" in entry for entry in evaluated[1:])
    best = read_json(finished / "train_results.json")["best_step"]
    names = [f"eval_retr/document_{name}" for name in ("recall/recall4", "ndcg/ndcg10")]
    scores = {entry["step"]: [entry[name] for name in names] for entry in evaluated}
    assert scores[best] == max(scores.values()), "of equal recall, nDCG decides"


def test_the_weights_are_those_of_the_best_step_the_pretrained_ones_if_none_was_better(finished, tiny_model) -> None:
    best = read_json(finished / "train_results.json")["best_step"]
    [stored] = [path.parent for path in manifests(finished) if read_json(path)["step"] == best]
    assert (finished / "model.safetensors").read_bytes() == (stored / "model/model.safetensors").read_bytes()
    before, after = load_file(Path(tiny_model) / "model.safetensors"), load_file(finished / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in after) == (best == 0)


def test_small_data_is_held_unless_it_is_asked_to_be_streamed(one_worker: Path, two_workers: Path) -> None:
    modes = [read_json(folder / "all_args.json")["data_mode"] for folder in (one_worker, two_workers)]
    assert modes == ["streaming", "resident"]


def test_every_checkpoint_has_the_round_of_negatives_that_training_goes_on_with(
    one_worker, two_workers, files
) -> None:
    rounds = {}
    for path in manifests(one_worker):
        with np.load(path.parent / "negatives.npz") as kept:
            rounds[read_json(path)["step"]] = dict(kept)
    assert all(kept["number"] == (1 if step < 6 else 2) for step, kept in rounds.items()) and 12 in rounds
    records = list(read_records(files["train_file"], "questions"))
    golds: dict[int, set[int]] = {}
    for _, record in records:
        for question in record.questions:
            golds.setdefault(question_key(question), set()).update(gold.passage_id for gold in record.gold_docs)
    of_questions = np.split(rounds[12]["ids"], rounds[12]["offsets"][1:-1])
    for ids, own in zip(of_questions, golds.values(), strict=True):
        assert len(ids) <= 2 and not own & set(ids.tolist())
    assert len(rounds[12]["ids"]) > len(golds)
    assert 0 <= rounds[12]["weight"] <= 1 and np.isfinite(rounds[12]["gold_scores"]).all()
    assert not list(two_workers.rglob("negatives.npz"))


def test_sentence_transformers_finds_the_same_passages(finished: Path, files) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(finished), device="cpu")
    documents: dict[int, Document] = {}
    for line in Path(files["full_dataset_file_path"]).read_text().splitlines():
        document = parse_document(parse_json(line))
        documents.setdefault(document.passage_id, document)
    corpus = model.encode([document.fmt_content for document in documents.values()])
    lines = read_predictions(finished, "eval")
    scores = model.encode([line["question"] for line in lines]) @ corpus.T
    ranked = np.array(list(documents))[np.argsort(-scores, axis=1, kind="stable")]
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    expected = retrieval_metrics(ranked[:, :60], golds)
    results = read_json(finished / "eval_results.json")
    assert results["eval_retr/document_recall/recall4"] == pytest.approx(expected["retr/document_recall/recall4"])
    assert results["eval_retr/document_ndcg/ndcg10"] == pytest.approx(expected["retr/document_ndcg/ndcg10"], abs=1e-6)


def merged(two_workers: Path, flags: list[str], folder: Path) -> list[str]:
    """Finishes a copy of a run again, with `--finish merge` on one worker; returns the words of the command."""
    shutil.copytree(two_workers, folder)
    kept = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps(kept | {"files": [*kept["files"], "adapter/of_earlier.json"]}))
    (folder / "adapter").mkdir()
    (folder / "adapter/of_earlier.json").write_text("{}")
    words = [*flags, "--output_dir", str(folder), "--finish", "merge", "--resume_from_checkpoint", "true"]
    run(words)
    return words


def scores_of(folder: Path) -> dict[str, Path]:
    """Returns the files of what a finish has scored, by candidate."""
    return {path.parent.name: path for path in folder.glob("checkpoints/*/finish/candidate*/evaluation.json")}


def test_a_merge_leaves_the_best_of_steps_mean_and_mixtures(two_workers, flags, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    merged(two_workers, flags, folder)
    assert "other settings than it began with: finish best -> merge" in capsys.readouterr().out
    results = read_json(folder / "train_results.json")
    scores = {entry["candidate"]: entry["value"] for entry in results["candidates"]}
    assert sum(name.startswith("mixture") for name in scores) == 4
    assert scores[results["chosen"]] == max(scores.values())
    assert read_json(folder / "eval_results.json")["eval_retr/document_recall/recall4"] == max(scores.values())
    assert not (folder / "adapter/of_earlier.json").exists(), "a file that this finish has not replaced"
    assert (folder / "hybrid.json").exists()
    tested = ["test" in read_json(path) for path in scores_of(folder).values()]
    assert len(tested) >= 4 and sum(tested) <= 1, "only the chosen one meets test questions"


@pytest.mark.slow
def test_a_finish_that_was_killed_goes_on_with_another_number_of_workers(two_workers, flags, tmp_path) -> None:
    folder = tmp_path / "out"
    words = merged(two_workers, flags, folder)
    results, weights = read_json(folder / "train_results.json"), (folder / "model.safetensors").read_bytes()
    stored = scores_of(folder)
    [lost] = [path for name, path in stored.items() if name.endswith("share-0.5")]
    shutil.rmtree(lost.parent)
    before = {path: path.stat().st_mtime_ns for path in stored.values() if path != lost}
    run([*words, "--num_workers", "2", "--per_device_train_batch_size", "4"])
    assert lost.exists() and before == {path: path.stat().st_mtime_ns for path in before}
    again = read_json(folder / "train_results.json")
    assert (again["chosen"], again["candidates"]) == (results["chosen"], results["candidates"])
    assert (folder / "model.safetensors").read_bytes() == weights


def test_lora_with_an_instruction_leaves_a_merged_model_that_scores_as_the_trained_one(
    ray_cluster, train_flags, files, tiny_model, tmp_path
) -> None:
    peft = pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    lines = [
        json.loads(line) | {"instruction": "Find: "} for line in Path(files["train_file"]).read_text().splitlines()
    ]
    asked, folder = write_lines(tmp_path / "asked.jsonl", lines), tmp_path / "out"
    words = [*train_flags, "--train_file", asked, "--eval_file", asked, "--output_dir", str(folder), "--lora_r", "4"]
    words += "--max_steps 4 --eval_steps 4 --learning_rate 0.02".split()
    run([*words, "--save_adapter", "true", "--metric_for_best_model", "eval_loss"])
    assert read_json(folder / "train_results.json")["best_step"] > 0
    opened = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_model), folder / "adapter")
    found = opened.merge_and_unload().state_dict()
    for name, weights in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-6)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.prompts["asked"] == "Find: "
    for line in read_predictions(folder, "eval")[:3]:  # scores of the model in training, not of the saved one
        documents = line["retrieved_docs"]
        question = model.encode_query(line["question"], prompt_name="asked")
        passages = model.encode_document([parse_document(document).fmt_content for document in documents])
        np.testing.assert_allclose(passages @ question, [document["score"] for document in documents], atol=1e-5)


@pytest.mark.slow
def test_all_args_repeats_the_run_to_the_bit(finished: Path, tmp_path) -> None:
    run([str(finished / "all_args.json"), "--output_dir", str(tmp_path / "again")])
    for name in ("model.safetensors", "eval-predictions.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_bad_line_is_named_by_file_and_line(ray_cluster, flags, files, tmp_path) -> None:
    good = Path(files["train_file"]).read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([good[0], '{"questions": ["a"]}', good[1]]))
    with pytest.raises(InputError) as error:
        run([*flags, "--train_file", str(tmp_path / "bad.jsonl"), "--output_dir", str(tmp_path / "out")])
    assert f"{tmp_path}/bad.jsonl:2: no `gold_docs`, found keys `questions`" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


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


def test_wrong_arguments_are_one_line_and_exit_code_2_before_ray_starts(flags, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("rqa_ray.training.setup.connect", lambda: pytest.fail("Ray is started"))
    words = ["--output_dir", tmp_path / "out", "--model_name_or_path", tmp_path]
    said = refused(capsys, "train", *flags, *words)
    assert "not a model folder" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def stored_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints."""
    from rqa_ray.training.checkpoints import read_checkpoint

    try:
        found = [read_checkpoint(str(path.parent)) for path in folder.glob("checkpoints/*/*/manifest.json")]
    except FileNotFoundError:  # the run has just deleted a folder, such as that of its probe of the storage
        return []
    return [checkpoint.step for checkpoint in found if checkpoint]


def kill_when(words: list[str], folder: Path, is_time) -> None:
    """Starts a new run and kills all of it, Ray included, at a given moment."""
    process = subprocess.Popen([sys.executable, "-c", STREAMING_JOB, str(ROOT), *words], stdout=subprocess.DEVNULL)
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


# Small windows, so that there are several; everything else is the job.
STREAMING_JOB = f"""
import runpy, sys
root = sys.argv[1]
sys.path.insert(0, root)
from rqa_ray.data import streaming
vars(streaming).update({SMALL_WINDOWS})
sys.argv = [root + "/jobs/train.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MOMENTS = {
    "before the first checkpoint": lambda folder, scratch: (folder / "run.json").exists(),
    "in the middle of the second epoch": lambda folder, scratch: 8 in stored_steps(folder),
    "between evaluation and save": lambda folder, scratch: any(scratch.glob("rqa_ray-*/checkpoint-8")),
}


def killed_and_resumed(flags, folder: Path, scratch: Path, moment: str, *more: str) -> None:
    """The run of `one_worker`, killed at one moment and resumed."""
    words = [*flags, *STREAMED, *more, "--output_dir", str(folder)]
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))  # where a worker writes a checkpoint before Ray stores it
        patch.setenv("RAY_TMPDIR", "/tmp")  # Ray's sockets need a short path
        kill_when(words, folder, lambda: MOMENTS[moment](folder, scratch))
        assert not (folder / "model.safetensors").exists()
        from rqa_ray.data import streaming

        for name, size in SMALL_WINDOWS.items():
            patch.setattr(streaming, name, size)
        run([*words, "--resume_from_checkpoint", "true"])


def assert_the_same_weights(folder: Path, expected: Path) -> None:
    """Compares the weights of the best model and of the last step."""
    steps = [entry["step"] for entry in read_json(folder / "trainer_state.json")["log_history"] if "loss" in entry]
    assert steps == list(range(1, 13))
    for path in ("model.safetensors", manifests(folder)[-1].parent / "model/model.safetensors"):
        other = manifests(expected)[-1].parent / "model/model.safetensors" if isinstance(path, Path) else path
        before, after = load_file(expected / other), load_file(folder / path)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def resumed(one_worker, flags, tmp_path_factory) -> tuple[Path, str]:
    """The output folder of a run that was killed in its second epoch and resumed, and what it printed.

    The run evaluates beside training. The kill cuts off the evaluation of step 8.
    """
    folder, said = tmp_path_factory.mktemp("resumed"), io.StringIO()
    with contextlib.redirect_stdout(said):
        moment = "in the middle of the second epoch"
        killed_and_resumed(flags, folder / "out", folder / "scratch", moment, "--async_eval")
    return folder / "out", said.getvalue()


def test_a_killed_run_ends_with_the_same_weights(resumed, one_worker) -> None:
    assert_the_same_weights(resumed[0], one_worker)


def test_evaluations_beside_training_are_those_of_the_loop(resumed, one_worker) -> None:
    folder, said = resumed
    assert "evaluating beside training, with 1 CPU; step 0 is evaluated before" in said
    assert "evaluated step 12 beside training: recall4 0." in said
    assert "hard_neg_docs of the training files are not used; --mine_negatives takes their place" in said
    assert "mining: 48 questions; " in said and "mined round" not in said  # the checkpoint has it
    expected, found = evaluations(one_worker), evaluations(folder)
    assert list(expected) == list(found) == [0, 4, 8, 12]
    for step, entry in expected.items():
        metrics = {name: value for name, value in entry.items() if name.startswith("eval_") and "latency" not in name}
        assert {name: found[step][name] for name in metrics} == pytest.approx(metrics, abs=1e-5)


def test_the_best_model_and_its_predictions_are_those_of_the_loop(resumed, one_worker) -> None:
    for split in ("eval", "test"):
        first, second = (read_json(folder / f"{split}_results.json") for folder in (one_worker, resumed[0]))
        assert first["step"] == second["step"] and first["intervals_95"] == second["intervals_95"]
        ranked = [
            [[document["metadata"] for document in line["retrieved_docs"]] for line in read_predictions(folder, split)]
            for folder in (one_worker, resumed[0])
        ]
        assert ranked[0] == ranked[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first checkpoint", "between evaluation and save"])
def test_a_run_killed_at_another_moment_ends_with_the_same_weights(flags, one_worker, tmp_path, moment) -> None:
    killed_and_resumed(flags, tmp_path / "out", tmp_path / "scratch", moment)
    assert_the_same_weights(tmp_path / "out", one_worker)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_put_off_is_made_when_the_run_goes_on(
    ray_cluster, flags, one_worker, tmp_path, monkeypatch
) -> None:
    from rqa_ray.data import streaming
    from rqa_ray.training import train as run_module

    def stopped_at_step_8(config):
        from rqa_ray.training.report_callback import ReportCallback
        from rqa_ray.training.worker import train_worker

        ReportCallback.is_stop_asked = lambda self: self.trainer.state.global_step == 8
        return train_worker(config)

    folder = tmp_path / "out"
    words = [*flags, *STREAMED, "--output_dir", str(folder)]
    for name, size in SMALL_WINDOWS.items():
        monkeypatch.setattr(streaming, name, size)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_worker", stopped_at_step_8)
        run(words)
    assert max(stored_steps(folder)) == 8 and 8 not in evaluations(folder)
    run([*words, "--resume_from_checkpoint", "true"])
    found, expected = (
        {step: entry["eval_loss"] for step, entry in evaluations(output).items()} for output in (folder, one_worker)
    )
    assert found == pytest.approx(expected)
    before, after = load_file(one_worker / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_lack_of_memory_is_one_line_of_rays_page_about_it() -> None:
    from ray.train import WorkerGroupError

    from rqa_ray.training.reasons import reason_of

    def of(failure: str, late: list[str] | None = None) -> str:
        return reason_of(WorkerGroupError("failed", {1: Exception(failure)}), late)

    page = "A worker health check failed.\nWorker(...)\n4 worker(s) were killed: the node running low on memory.\nmore"
    assert of(page).startswith("4 worker(s) were killed") and "\n" not in of(page)
    assert of("Traceback\nValueError: x") == "training failed on rank 1: Traceback\nValueError: x"
    assert of("Traceback\nrqa_ray.training.uploads.StorageError: /full: no space left") == "/full: no space left"
    waited = of("RuntimeError: Timed out waiting 1ms", ["rank 0 (node a, process 1)"])
    assert waited.startswith("rank 0 (node a, process 1) did not answer")
    silent = of("A worker health check has been hanging for 31 seconds.\nWorker(...)", ["rank 1 (node a, process 2)"])
    assert silent.startswith("rank 1 (node a, process 2) did not answer") and "\n" not in silent


def test_the_loss_of_rays_controller_is_the_line_that_says_why() -> None:
    from ray.exceptions import RayError

    from rqa_ray.training.reasons import reason_of_loss

    page = "The actor died unexpectedly.\n\tpid: 7\nThe actor is dead because its owner has died. Node lost.\nmore"
    assert reason_of_loss(RayError(page)) == "The actor is dead because its owner has died. Node lost."
    assert reason_of_loss(RayError("GCS is away\nmore")) == "GCS is away"


@pytest.mark.parametrize(("of_user", "ddp_timeout", "found"), [(None, 45, "45"), (None, 5, "30"), ("700", 45, "700")])
def test_a_hanging_worker_is_noticed_after_ddp_timeout_unless_the_user_sets_rays_own_limit(
    of_user, ddp_timeout, found, monkeypatch
) -> None:
    from rqa_ray.cluster.workers import Workers
    from rqa_ray.training import driver

    monkeypatch.setenv(driver.HANG_VARIABLE, "of an earlier run in this process")
    monkeypatch.setattr(driver, "HANG_OF_USER", of_user)
    monkeypatch.setattr(driver, "LeanTrainer", lambda *args, **options: None)
    spec = SimpleNamespace(training={"ddp_timeout": ddp_timeout}, settings=SimpleNamespace(finish="none"))
    driver.torch_trainer(None, spec, Workers(1, 1, False), "/storage", "run")
    assert os.environ[driver.HANG_VARIABLE] == found


def test_the_ranks_that_hang_are_those_that_ray_names_else_those_that_did_not_wait_for_others() -> None:
    from rqa_ray.training.mailbox import Mailbox

    mailbox = Mailbox.__ray_metadata__.modified_class()
    for rank in range(3):
        mailbox.begin("run", rank, f"process {rank}")
    assert mailbox.missing("run", 3, []) == [] and mailbox.missing("run", 3, [1]) == ["rank 1 (process 1)"]
    mailbox.gave_up("run", 0)
    assert mailbox.missing("run", 3, []) == ["rank 1 (process 1)", "rank 2 (process 2)"]
    assert mailbox.missing("run", 3, [2]) == ["rank 2 (process 2)"]


def test_a_model_that_a_worker_refuses_is_one_line_without_advice_to_go_on(capsys) -> None:
    from ray.train import WorkerGroupError

    from rqa_ray.training.driver import _raise

    page = "Traceback\nrqa_ray.errors.InputError: /model: the weights x are not finite; pass another"
    with pytest.raises(SystemExit) as end:
        _raise(WorkerGroupError("failed", {0: Exception(page)}), 1, None, None, None, "", "")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: /model: the weights x are not finite; pass another\n"


def test_the_start_of_a_restarted_run_leaves_out_the_attempt_before(monkeypatch) -> None:
    from rqa_ray.training import mailbox as module

    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    mailbox = module.Mailbox.__ray_metadata__.modified_class()
    for what, now in (("begin", 7.0), ("record", 9.0), ("record", 60.0), ("begin", 70.0), ("note", 71.0)):
        mailbox.begin("run", 0, "here") if what == "begin" else mailbox.put("run", {} if what == "note" else {"a": 1})
        assert mailbox.starting("run") == (0.0 if now == 7 else 9.0)
    now = 72.0
    mailbox.put("run", {"a": 1})
    assert mailbox.starting("run") == 12.0 and mailbox.starting("other") == 0.0


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
