"""Evaluation beside training: a task of Ray Train's, on hardware that the workers leave free, for each checkpoint."""

from __future__ import annotations

from typing import Any

import ray.train
import torch

from rqa_ray.arguments import Settings
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.evaluation.evaluate import RetrievalEvaluator
from rqa_ray.retriever.encode import EncodeOptions
from rqa_ray.retriever.saving import load_encoder
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.training.checkpoints import SCORE, score, step_of, write_evaluation
from rqa_ray.training.trainer import MODEL_FOLDER


def validate(checkpoint: ray.train.Checkpoint, config: dict[str, Any]) -> dict[str, float]:
    """Evaluates a checkpoint on the full corpus, and stores metrics and rankings beside it.

    `config` is that of `train_worker`, with `beside`, the resources that this task has. Returns the eval metrics, and
    the score by which Ray ranks checkpoints.
    """
    settings, training, beside = Settings(**config["settings"]), config["training"], config["beside"]
    torch.set_num_threads(max(1, int(beside["num_cpus"])))
    tables = {name: fetch_tables(refs) for name, refs in config["blocks"].items() if name != "train"}
    step = step_of(checkpoint)
    with checkpoint.as_directory() as folder:
        encoder = load_encoder(
            f"{folder}/{MODEL_FOLDER}", config["encoder"], trust_remote_code=settings.trust_remote_code
        )
    encoder.to("cuda" if beside.get("num_gpus") else "cpu").eval()
    tokenizer = TextTokenizer(config["model_folder"], config["encoder"], settings.trust_remote_code).tokenizer
    options = EncodeOptions.for_device(encoder, tokenizer.pad_token_id)
    options.max_rows_per_chunk = training["per_device_eval_batch_size"]
    fp16 = torch.float16 if training.get("fp16_full_eval") else None
    options.mixed_precision = torch.bfloat16 if training.get("bf16_full_eval") else fp16
    splits = {split: Questions.from_tables(tables[split]) for split in tables if split != "corpus"}
    evaluator = RetrievalEvaluator(Corpus.from_tables(tables["corpus"]), splits, options, settings.temperature)
    results = evaluator.evaluate(encoder)
    write_evaluation(checkpoint, step, results)
    metric, metrics = training["metric_for_best_model"], results["eval"].metrics
    note = f"evaluated step {step} beside training: {metric.rsplit('/', 1)[-1]} {metrics[metric]:.3f}"
    config["mailbox"].put.remote(None, note)
    return {**metrics, SCORE: score(metrics[metric], metric, step)}
