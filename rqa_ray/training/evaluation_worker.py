"""Evaluates a stored model: beside training, for each checkpoint; or on all workers, before or after training.

A search calls `evaluate_worker` twice: before its trials for the pretrained model, and after them for the winner. Only
these two models are evaluated on the test questions.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import open_location
from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import save_encoder
from rqa_ray.training.checkpoint_files import MODEL_FOLDER, StepNote, save_evaluations
from rqa_ray.training.checkpoints import SCORE, score, step_of, write_evaluation, write_manifest
from rqa_ray.training.spec import WorkerResult, WorkerSpec

OnProgress = Callable[[int, int], None]


def evaluate_beside(checkpoint: ray.train.Checkpoint, spec: WorkerSpec) -> dict[str, float]:
    """Evaluates a checkpoint on the full corpus with the spec's `spare` resources, and stores the result beside it.

    Returns the eval metrics, and the score by which Ray ranks checkpoints.
    """
    assert spec.spare is not None
    device = torch.device("cuda" if spec.spare.get("num_gpus") else "cpu")
    # In its own thread: without privileges a thread cannot take back that it gives way, and Ray uses this process
    # again.
    with checkpoint.as_directory() as folder, ThreadPoolExecutor(1, initializer=_give_way) as thread:
        num_threads = max(1, int(spec.spare["num_cpus"]))
        _, found = thread.submit(_evaluate, spec, f"{folder}/{MODEL_FOLDER}", num_threads, device).result()
    step = step_of(checkpoint)
    write_evaluation(checkpoint, step, found)
    metric, metrics = spec.training["metric_for_best_model"], found.metrics_of("eval")
    note = f"evaluated step {step} beside training: {metric.rsplit('/', 1)[-1]} {metrics[metric]:.3f}"
    spec.mailbox.put.remote(spec.run, None, note)
    return {**metrics, SCORE: score(metrics[metric], metric, step)}


def evaluate_worker(spec: WorkerSpec) -> WorkerResult:
    """Evaluates one model on the eval and test questions, together with the other ranks.

    The result is stored beside the checkpoint `resume_from`, as in `evaluate_beside`. If `resume_from` is None, the
    pretrained model is stored with its result as a checkpoint of step 0.
    """
    progress = Progress(spec.phase)

    def on_progress(done: int, total: int) -> None:
        progress.done, progress.total = done, total
        if distributed.rank() == 0:
            spec.mailbox.put.remote(spec.run, as_record(progress))

    device = ray.train.torch.get_device()
    if spec.resume_from:
        filesystem, path = open_location(spec.resume_from)
        stored = ray.train.Checkpoint(path, filesystem)
        with stored.as_directory() as folder:
            _, found = _evaluate(spec, f"{folder}/{MODEL_FOLDER}", spec.num_cpus, device, on_progress)
        if distributed.rank() == 0:
            write_evaluation(stored, step_of(stored), found)
        return WorkerResult()
    encoder, found = _evaluate(spec, spec.model.folder, spec.num_cpus, device, on_progress)
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        checkpoint = None
        if distributed.rank() == 0:
            save_encoder(encoder, f"{scratch}/{MODEL_FOLDER}")
            save_evaluations(Path(scratch), found, found)
            StepNote(0).save(Path(scratch))
            write_manifest(Path(scratch), 0)
            checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report({SCORE: 0.0}, checkpoint=checkpoint)
    return WorkerResult()


def _give_way() -> None:
    """Lets this thread and its child threads run only where a core has nothing else to do (Linux: SCHED_IDLE).

    Ray's own processes then interrupt the evaluation, and not the training on the next core.
    """
    with suppress(AttributeError, OSError):  # another operating system, or a sandbox that forbids it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _evaluate(
    spec: WorkerSpec,
    model_folder: str,
    num_threads: int,
    device: torch.device,
    on_progress: OnProgress | None = None,
) -> tuple[Encoder, Evaluation]:
    torch.set_num_threads(num_threads)
    model = spec.model
    bring_model(model.folder, model.copy)
    tables = {name: fetch_tables(refs) for name, refs in spec.blocks.items() if name != "train"}
    embedder = Embedder.load(replace(model, folder=model_folder), device)
    embedder.options.max_rows = spec.training["per_device_eval_batch_size"]
    embedder.options.mixed_precision = spec.eval_precision
    splits = {split: Questions.from_tables(tables[split]) for split in tables if split != "corpus"}
    corpus = Corpus.from_tables(tables["corpus"])
    evaluator = RetrievalEvaluator(corpus, splits, embedder, spec.bm25 and ray.get(spec.bm25))
    if on_progress:
        evaluator.on_progress = on_progress
    return embedder.encoder, evaluator.evaluate(spec.settings.temperature)
