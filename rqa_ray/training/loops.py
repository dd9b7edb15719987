"""The functions that Ray Train runs on its workers.

Ray's controller loads them too, so they import the rest when called.
"""

from __future__ import annotations

from rqa_ray.quick_imports import quick_imports
from rqa_ray.training.spec import WorkerResult, WorkerSpec


def train_worker(spec: WorkerSpec) -> WorkerResult:
    """Trains on this rank."""
    with quick_imports():
        from rqa_ray.training.worker import train_worker

    return train_worker(spec)


def evaluate_worker(spec: WorkerSpec) -> WorkerResult:
    """Evaluates the pretrained model on this rank."""
    with quick_imports():
        from rqa_ray.training.evaluation_worker import evaluate_worker

    return evaluate_worker(spec)


def finish_worker(spec: WorkerSpec) -> WorkerResult:
    """Scores candidates on this rank."""
    with quick_imports():
        from rqa_ray.training.evaluation_worker import finish_worker

    return finish_worker(spec)
