"""Evaluation beside training gives what evaluation in the loop gives, and training does not wait for it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rqa_ray.cluster.workers import WorkerPlan, find_spare, where_evaluated
from rqa_ray.training.job import parse_job


def train(words: list[str]) -> None:
    from rqa_ray.training.train import train

    train(parse_job(words))


def history(folder: Path) -> dict[int, dict]:
    """The evaluations by step."""
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry for entry in entries if "eval_retr/document_recall/recall4" in entry}


def without_latency(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith("eval_") and "latency" not in name}


@pytest.fixture(scope="module")
def runs(ray_cluster, flags, tmp_path_factory) -> dict[str, Path]:
    """The same run with evaluation in the loop, beside it, and with no room beside it."""
    folder = tmp_path_factory.mktemp("validate")
    options = {"loop": ["1"], "beside": ["1", "--async_eval"], "no_room": ["2", "--async_eval"]}
    for name, words in options.items():
        train([*flags, "--output_dir", str(folder / name), "--cpus_per_worker", *words])
    return {name: folder / name for name in options}


@pytest.mark.parametrize("name", ["beside", "no_room"])
def test_the_evaluations_are_those_of_the_loop(runs, name):
    expected, found = history(runs["loop"]), history(runs[name])
    assert list(expected) == list(found) == [0, 4, 8, 12]
    for step, entry in expected.items():
        assert without_latency(found[step]) == pytest.approx(without_latency(entry), abs=1e-5)


def test_the_best_model_and_its_predictions_are_those_of_the_loop(runs):
    expected, found = (runs[name] for name in ("loop", "beside"))
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    for split in ("eval", "test"):
        first, second = (json.loads((folder / f"{split}_results.json").read_text()) for folder in (expected, found))
        assert first["step"] == second["step"] and first["intervals_95"] == second["intervals_95"]
        lines = [
            [json.loads(line) for line in (folder / f"{split}-predictions.jsonl").read_text().splitlines()]
            for folder in (expected, found)
        ]
        ranked = [[[doc["metadata"] for doc in line["retrieved_docs"]] for line in part] for part in lines]
        assert ranked[0] == ranked[1]


def test_a_run_that_was_evaluated_beside_can_be_resumed(runs, flags, capsys):
    words = [*flags, "--output_dir", str(runs["beside"]), "--cpus_per_worker", "1", "--async_eval"]
    train([*words, "--max_steps", "16", "--resume_from_checkpoint", "true"])
    said = capsys.readouterr().out
    assert "evaluating beside training, with 1 CPU; step 0 is evaluated before" in said
    assert "evaluated step 16 beside training: recall4 0." in said
    assert list(history(runs["beside"])) == [0, 4, 8, 12, 16]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no such priority")
def test_an_evaluation_beside_training_gives_way_and_its_process_does_not_stay_so():
    from rqa_ray.training.evaluation_worker import _give_way

    with ThreadPoolExecutor(1, initializer=_give_way) as thread:
        assert thread.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE
        with thread.submit(ThreadPoolExecutor, 1).result() as its_own:
            started = thread.submit(its_own.submit, os.sched_getscheduler, 0).result()
            assert started.result() == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("nodes", "plan", "spare"),
    [
        ([{"CPU": 2}], WorkerPlan(1, 1, False), {"num_cpus": 1}),
        ([{"CPU": 2}], WorkerPlan(1, 2, False), None),
        ([{"CPU": 2}], WorkerPlan(2, 1, False), None),
        ([{"CPU": 4}, {"CPU": 9}], WorkerPlan(2, 4, False), {"num_cpus": 4}),
        ([{"CPU": 8, "GPU": 2}], WorkerPlan(2, 2, True), None),
        ([{"CPU": 8, "GPU": 2}], WorkerPlan(1, 4, True), {"num_cpus": 4, "num_gpus": 1}),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 16}], WorkerPlan(1, 4, True), None),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 3, "GPU": 1}], WorkerPlan(1, 8, True), {"num_cpus": 3, "num_gpus": 1}),
    ],
)
def test_what_is_spare_is_what_the_workers_leave_on_one_node(nodes, plan, spare, monkeypatch):
    monkeypatch.setattr("rqa_ray.cluster.workers.nodes_now", lambda: nodes)
    assert find_spare(plan) == spare
    assert ("beside" in where_evaluated(plan, spare)) == (spare is not None)
