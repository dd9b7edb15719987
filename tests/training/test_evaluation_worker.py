"""Evaluation beside training gives way to it, and uses what the workers leave free.

`test_train.py` compares its results.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rqa_ray.cluster.workers import Workers, find_spare, where_evaluated


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no such priority")
def test_an_evaluation_beside_training_gives_way_and_its_process_does_not_stay_so():
    from rqa_ray.training.evaluation_worker import _give_way

    with ThreadPoolExecutor(1, initializer=_give_way) as thread:
        assert thread.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE
        with thread.submit(ThreadPoolExecutor, 1).result() as its_own:
            started = thread.submit(its_own.submit, os.sched_getscheduler, 0).result()
            assert started.result() == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(("report_to", "steps"), [("tensorboard", [4, 8]), ("wandb, none", [])])
def test_tensorboard_shows_evaluations_beside_training_at_their_own_steps(report_to, steps, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rqa_ray.training.evaluation_worker import show_in_tensorboard

    location = SimpleNamespace(training={"report_to": report_to}, logging_location=str(tmp_path / "tensorboard"))
    for step in (4, 8):  # each may run on another node
        show_in_tensorboard(location, step, {"eval_retr/document_recall/recall4": step / 10})
    folder = tmp_path / "tensorboard" / "evaluated-beside"
    shown = EventAccumulator(str(folder)).Reload() if folder.exists() else None
    found = shown.Scalars("eval/retr/document_recall/recall4") if shown else []
    assert [event.step for event in found] == steps
    assert [event.value for event in found] == pytest.approx([step / 10 for step in steps])


@pytest.mark.parametrize(
    ("nodes", "plan", "spare"),
    [
        ([{"CPU": 2}], Workers(1, 1, False), {"num_cpus": 1}),
        ([{"CPU": 2}], Workers(1, 2, False), None),
        ([{"CPU": 2}], Workers(2, 1, False), None),
        ([{"CPU": 4}, {"CPU": 9}], Workers(2, 4, False), {"num_cpus": 4}),
        ([{"CPU": 8, "GPU": 2}], Workers(2, 2, True), None),
        ([{"CPU": 8, "GPU": 2}], Workers(1, 4, True), {"num_cpus": 4, "num_gpus": 1}),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 16}], Workers(1, 4, True), None),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 3, "GPU": 1}], Workers(1, 8, True), {"num_cpus": 3, "num_gpus": 1}),
    ],
)
def test_what_is_spare_is_what_the_workers_leave_on_one_node(nodes, plan, spare, monkeypatch):
    monkeypatch.setattr("rqa_ray.cluster.workers.nodes_now", lambda: nodes)
    assert find_spare(plan) == spare
    assert ("beside" in where_evaluated(plan, spare)) == (spare is not None)
