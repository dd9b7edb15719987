"""Whole searches on a real Ray cluster: the winner, its cost, and what happens when something fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rqa_ray.data.formats import parse_document
from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.evaluation.predictions import read_predictions
from rqa_ray.training.job import parse_job
from rqa_ray.tuning.options import parse_search

ROOT = Path(__file__).parents[2]
METRIC = "eval_retr/document_ndcg/ndcg10"


def run(words: list[str]) -> None:
    from rqa_ray.tuning.tune import tune

    tune(parse_search(words))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def read_json(path: Path):
    return json.loads(path.read_text())


def ndcg_of_predictions(folder: Path, split: str) -> float:
    import numpy as np

    lines = read_predictions(folder, split)
    ranked = np.array([[parse_document(doc).passage_id for doc in line["retrieved_docs"]] for line in lines])
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    return retrieval_metrics(ranked, golds)["retr/document_ndcg/ndcg10"]


@pytest.fixture(scope="module")
def searched(ray_cluster, flags, files, tmp_path_factory):
    """One trial is good, one is worse, one diverges; the input files are deleted before the first trial starts."""
    from rqa_ray.tuning import tune as module

    folder = tmp_path_factory.mktemp("search")
    words = list(flags)
    for name, path in files.items():
        words += [f"--{name}", shutil.copy(path, folder)]
    original, patch = module.evaluate_pretrained, pytest.MonkeyPatch()

    def then_delete(*args):
        found = original(*args)
        for path in folder.glob("*.jsonl"):
            path.unlink()
        return found

    patch.setattr(module, "evaluate_pretrained", then_delete)
    run([*words, "--tune_learning_rate", "1e-2", "1e-3", "1e25", "--seed", "1", "--output_dir", str(folder / "out")])
    patch.undo()
    return folder / "out"


def test_a_trial_that_is_worse_is_stopped_early_and_one_that_diverges_is_marked(searched):
    rows = rows_of(searched)
    assert [row["state"] for row in rows] == ["finished", "stopped early", "diverged"]
    assert [row["pairs"] for row in rows[:2]] == ["96", "48"]
    assert "the loss is not finite" in rows[2]["problem"]


def test_the_winner_is_left_as_a_training_run_leaves_its_model(searched):
    rows = rows_of(searched)
    best = float(rows[0][METRIC])
    assert best == max(float(row[METRIC]) for row in rows[:2])
    assert read_json(searched / "eval_results.json")[METRIC] == best
    assert ndcg_of_predictions(searched, "eval") == pytest.approx(best, abs=1e-9)
    tested = read_json(searched / "test_results.json")["test_retr/document_ndcg/ndcg10"]
    assert ndcg_of_predictions(searched, "test") == pytest.approx(tested, abs=1e-9)
    assert str(read_json(searched / "train_results.json")["best_step"]) == rows[0]["best_step"]
    assert read_json(searched / "train_results.json")["train_runtime"] > 0
    history = read_json(searched / "trainer_state.json")["log_history"]
    assert [entry["step"] for entry in history if METRIC in entry] == [0, 3, 6, 9, 12]
    assert {"README.md", "model.safetensors", "modules.json", "tune_report.html"} <= set(os.listdir(searched))


def test_only_the_winner_has_met_the_test_questions(searched):
    stored = {path.parent.parent.name: read_json(path) for path in searched.glob("checkpoints/*/*/*/evaluation.json")}
    winner = rows_of(searched)[0]["name"]
    assert set(stored) == {"pretrained.0", f"{winner}.0"}, "what other trials stored is deleted"
    of_trial = [read_json(path) for path in searched.glob(f"checkpoints/*/{winner}.0/checkpoint*/evaluation.json")]
    assert of_trial and not [found for found in of_trial if "test" in found]


@pytest.mark.slow
def test_its_config_reaches_the_same_with_jobs_train(searched, files, tmp_path):
    from rqa_ray.training.train import train

    words = [str(searched / "best_config.json"), "--output_dir", str(tmp_path / "out")]
    train(parse_job(words + [word for name, path in files.items() for word in (f"--{name}", path)]))
    found = read_json(tmp_path / "out/eval_results.json")
    assert found[METRIC] == pytest.approx(float(rows_of(searched)[0][METRIC]), abs=1e-6)
    assert read_json(searched / "best_config.json")["output_dir"] == f"{searched}-best"


def test_a_search_that_has_ended_can_be_asked_again_and_a_copy_of_it_leaves_it_alone(
    searched, flags, files, capsys, tmp_path
):
    words = [
        *flags,
        *(word for name in files for word in (f"--{name}", str(searched.parent / Path(files[name]).name))),
    ]
    for path in files.values():
        shutil.copy(path, searched.parent)
    copy = Path(shutil.copytree(searched, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in [searched, *searched.rglob("*")]}
    words += ["--tune_learning_rate", "1e-2", "1e-3", "1e25", "--seed", "1", "--output_dir", str(copy)]
    with pytest.raises(InputError, match="is not empty; choose another folder, resume its run with --resume"):
        run(words)
    run([*words, "--resume"])
    assert (copy / "trials.csv").read_bytes() == (searched / "trials.csv").read_bytes()
    assert "evaluating" not in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in [searched, *searched.rglob("*")]}
    with pytest.raises(InputError, match="changed: num_samples 10 -> 20"):
        run([*words, "--resume", "--num_samples", "20"])


@pytest.mark.slow
def test_a_stopped_trial_of_two_workers_leaves_nothing_behind(ray_cluster, flags, tmp_path, monkeypatch):
    from ray._private.state import actors
    from ray.util import placement_group_table

    from rqa_ray.tuning import tune as module

    def alive() -> list:
        groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
        workers = [actor for actor in actors().values() if actor["ActorClassName"] == "RayTrainWorker"]
        return groups + [actor for actor in workers if actor["State"] == "ALIVE"]

    left = []
    original = module.leave_winner

    def when_trials_have_ended(*args):
        end = time.monotonic() + 10
        while alive() and time.monotonic() < end:
            time.sleep(0.5)
        left.extend(alive())
        original(*args)

    monkeypatch.setattr(module, "leave_winner", when_trials_have_ended)
    words = ["--num_workers", "2", "--tune_learning_rate", "1e-2", "1e-3", "3e-3"]
    run([*flags, *words, "--output_dir", str(tmp_path / "out")])
    # Which of them trains first is a race: the next one's driver starts while the first one's workers do.
    states = sorted(row["state"] for row in rows_of(tmp_path / "out"))
    assert states == ["finished", "stopped early", "stopped early"]
    assert left == []


@pytest.mark.slow
def test_optuna_searches_on_when_a_trial_is_killed_twice(ray_cluster, flags, tmp_path):
    pytest.importorskip("optuna")
    folder, killed = tmp_path / "out", []

    def kill_first_trial_twice() -> None:
        trial = "*"
        for attempt in range(2):
            while not (found := trials_with_checkpoints(folder, f"{trial}.{attempt}")):
                time.sleep(0.05)
            trial = found[0]
            own = {process.pid for process in psutil.Process().children(recursive=True)}  # not of another cluster here
            processes = [process for process in psutil.process_iter(["cmdline"]) if process.pid in own]
            trials = [process for process in processes if "ImplicitFunc" in str(process.info["cmdline"])]
            newest = max(trials, key=lambda one: one.create_time())
            newest.kill()
            killed.append(newest.pid)

    thread = threading.Thread(target=kill_first_trial_twice, daemon=True)
    thread.start()
    words = list(flags)
    test_file = words.index("--test_file")
    del words[test_file : test_file + 2]
    words += ["--search_alg", "optuna", "--num_samples", "3", "--scheduler", "none", "--tune_batch_size", "4", "8"]
    words += ["--tune", "temperature=0.02:0.1:log", "pooling_type=cls", "mine_margin=10:1000:log"]
    words += ["negatives_per_question=0:2", "train_share=0.5,1", "--mine_negatives", "2", "--mine_every", "0.5"]
    words += ["--tune_learning_rate", "1e-5", "1e-3"]
    run([*words, "--max_steps", "100", "--eval_steps", "0.2", "--logging_steps", "100", "--output_dir", str(folder)])
    rows = rows_of(folder)
    assert len(killed) == 2 and [row["state"] for row in rows] == ["failed", "finished", "finished"]
    assert rows[0]["problem"]
    assert (folder / "model.safetensors").is_file()
    assert [path.name for path in folder.glob("checkpoints/*/pretrained*")] == ["pretrained-cls.0"]


def trials_with_checkpoints(folder: Path, attempt: str) -> list[str]:
    found = folder.glob(f"checkpoints/*/{attempt}/checkpoint-*/manifest.json")
    names = {path.parents[1].name.rpartition(".")[0] for path in found}
    return [name for name in names if not name.startswith("pretrained")]


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(flags, tmp_path):
    folder = tmp_path / "out"
    words = [sys.executable, str(ROOT / "jobs/tune.py"), *flags, "--max_steps", "300", "--eval_steps", "0.1"]
    words += ["--logging_steps", "100", "--scheduler", "none", "--num_samples", "4", "--tune_learning_rate"]
    words += ["1e-5", "1e-3", "--output_dir", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not (folder / "trials.csv").exists() or len(rows_of(folder)) < 3:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        time.sleep(3)  # in the middle of the next one
    finally:
        process.kill()
        process.wait()
    before = [row for row in rows_of(folder) if row["state"] == "finished"]
    files = {path: path.stat().st_mtime for row in before for path in folder.glob(f"tensorboard/{row['name']}/*")}
    ended = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert [row for row in rows if row["name"] in {one["name"] for one in before}] == before
    assert before and files == {path: path.stat().st_mtime for path in files}, "a finished trial has run again"


def test_what_can_never_be_placed_is_refused(ray_cluster, flags, tmp_path):
    words = ["--tune_learning_rate", "1e-5", "1e-3", "--num_workers", "64", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--num_workers 64: needs 64 workers with 1 CPU each, the cluster has nodes"):
        run([*flags, *words])
    assert not (tmp_path / "out").exists()


def test_a_search_that_ray_ended_for_want_of_memory_says_so_in_a_line_and_how_to_go_on(
    ray_cluster, flags, tmp_path, monkeypatch, capsys
):
    from types import SimpleNamespace

    from rqa_ray.tuning import tune as module

    def fit():  # as Ray Tune does after the memory monitor has killed one of its actors
        raise RuntimeError(
            "Caught unexpected exception: 2 worker(s) were killed: the node running low on memory.\nmore"
        )

    monkeypatch.setattr(module, "new_tuner", lambda *_: SimpleNamespace(fit=fit))
    asked = parse_search([*flags, "--output_dir", str(tmp_path / "out")])
    shared = SimpleNamespace(trains_in_process=False, root=str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        module.run_trials(asked, None, shared, None)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in said
    assert "the node running low on memory.; free memory, or lower" in said and "--resume" in said
