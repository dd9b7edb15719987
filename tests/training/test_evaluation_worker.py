"""Evaluation beside training gives way to it, and uses what the workers leave free.

`test_train.py` compares its results.
"""

import os
from concurrent.futures import ThreadPoolExecutor

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
