"""Evaluation of a stored model: beside training, for each checkpoint; or by all workers, before or after training.

`evaluate_worker` is what a search does once for the pretrained model that all its trials start from, and once for the
winner, whose test questions nothing has looked at before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.evaluation.evaluator import RetrievalEvaluator, SplitResult
from rqa_ray.places import open_location
from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.retriever.embedder import EncodeOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import load_encoder, save_encoder
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.settings import Settings
from rqa_ray.training.checkpoints import (
    SCORE,
    score,
    step_of,
    write_evaluation,
    write_manifest,
)
from rqa_ray.training.trainer import MODEL_FOLDER, write_results

OnProgress = Callable[[int, int], None]


def validate(checkpoint: ray.train.Checkpoint, config: dict[str, Any]) -> dict[str, float]:
    """Evaluates a checkpoint on the full corpus, and stores metrics and rankings beside it.

    `config` is that of `train_worker`, with `beside`, the resources that this task has. Returns the eval metrics, and
    the score by which Ray ranks checkpoints.
    """
    beside = config["beside"]
    device = torch.device("cuda" if beside.get("num_gpus") else "cpu")
    # In a thread of its own: without privileges a thread that gives way stays so, and Ray uses this process again.
    with checkpoint.as_directory() as folder, ThreadPoolExecutor(1, initializer=_give_way) as thread:
        num_threads = max(1, int(beside["num_cpus"]))
        _, results = thread.submit(_evaluate, config, f"{folder}/{MODEL_FOLDER}", num_threads, device).result()
    step = step_of(checkpoint)
    write_evaluation(checkpoint, step, results)
    metric, metrics = config["training"]["metric_for_best_model"], results["eval"].metrics
    note = f"evaluated step {step} beside training: {metric.rsplit('/', 1)[-1]} {metrics[metric]:.3f}"
    config["mailbox"].put.remote(config["run"], None, note)
    return {**metrics, SCORE: score(metrics[metric], metric, step)}


def evaluate_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Evaluates one model on this rank together with the others, on the eval and test questions.

    `config` is that of `train_worker`, with `phase`, the words of the progress line. The checkpoint `resume_from` gets
    its results beside it, as by `validate`. Where it is None, the pretrained model is stored with its results as a
    checkpoint of step 0.
    """
    progress = Progress()

    def on_progress(done: int, total: int) -> None:
        progress.done, progress.total = done, total
        progress.phase = config["phase"]
        if distributed.rank() == 0:
            config["mailbox"].put.remote(config["run"], as_record(progress))

    device = ray.train.torch.get_device()
    stored = None
    if config["resume_from"]:
        filesystem, path = open_location(config["resume_from"])
        stored = ray.train.Checkpoint(path, filesystem)
        with stored.as_directory() as folder:
            _, results = _evaluate(config, f"{folder}/{MODEL_FOLDER}", config["cpus"], device, on_progress)
        if distributed.rank() == 0:
            write_evaluation(stored, step_of(stored), results)
    else:
        encoder, results = _evaluate(config, config["model_folder"], config["cpus"], device, on_progress)
        with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
            checkpoint = None
            if distributed.rank() == 0:
                tokenizer = TextTokenizer(config["model_folder"], config["encoder"], _trusts(config)).tokenizer
                save_encoder(encoder, tokenizer, f"{scratch}/{MODEL_FOLDER}")
                write_results(Path(scratch), 0, results, results)
                write_manifest(Path(scratch), 0)
                checkpoint = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report({SCORE: 0.0}, checkpoint=checkpoint)
    return {"step": 0, "stopped": False, "failure": None, "metrics": {}}


def _give_way() -> None:
    """Lets this thread, and those that it starts, run only where a core has nothing else to do (Linux: SCHED_IDLE).

    Ray's own processes then interrupt the evaluation, not the training on the next core.
    """
    with suppress(AttributeError, OSError):  # another system, or a sandbox that forbids it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _trusts(config: dict[str, Any]) -> bool:
    return config["settings"]["trust_remote_code"]


def _evaluate(
    config: dict[str, Any],
    model_folder: str,
    num_threads: int,
    device: torch.device,
    on_progress: OnProgress | None = None,
) -> tuple[Encoder, dict[str, SplitResult]]:
    torch.set_num_threads(num_threads)
    settings, training = Settings(**config["settings"]), config["training"]
    bring_model(config["model_folder"], config["model_copy"])
    tables = {name: fetch_tables(refs) for name, refs in config["blocks"].items() if name != "train"}
    encoder = load_encoder(model_folder, config["encoder"], trust_remote_code=_trusts(config)).to(device).eval()
    tokenizer = TextTokenizer(config["model_folder"], config["encoder"], _trusts(config)).tokenizer
    options = EncodeOptions.for_device(encoder, tokenizer.pad_token_id)
    options.max_rows = training["per_device_eval_batch_size"]
    fp16 = torch.float16 if training.get("fp16_full_eval") else None
    options.mixed_precision = torch.bfloat16 if training.get("bf16_full_eval") else fp16
    splits = {split: Questions.from_tables(tables[split]) for split in tables if split != "corpus"}
    evaluator = RetrievalEvaluator(Corpus.from_tables(tables["corpus"]), splits, options, settings.temperature)
    if on_progress:
        evaluator.on_progress = on_progress
    return encoder, evaluator.evaluate(encoder)
