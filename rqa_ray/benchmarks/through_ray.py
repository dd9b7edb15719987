"""Measures the steps inside Ray Train's workers: what Ray costs, and how speed grows with the number of workers."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from rqa_ray.benchmarks import contenders
from rqa_ray.benchmarks.contenders import Workload
from rqa_ray.benchmarks.measure import measure
from rqa_ray.benchmarks.processes import Figures
from rqa_ray.cluster.connection import connect


def measure_through_ray(
    workload: Workload, seed: int, steps: int, threads: int, began: float, num_workers: int
) -> Figures:
    """Does `measure` for this project in Ray workers with `threads` threads each; the global batch stays the same."""
    connect()
    use_gpu = workload.device.type == "cuda"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "workload": workload,
            "seed": seed,
            "steps": steps,
            "threads": threads,
            "began": began,
            "contender": contenders.own,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": threads, "GPU": int(use_gpu)}
        ),
    )
    try:
        return trainer.fit().return_value
    finally:
        ray.shutdown()


def _worker(config: dict[str, Any]) -> Figures:
    return measure(**config)
