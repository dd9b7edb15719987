"""The contenders of a training step, on the same batches: this project's Trainer, the limit, and the peers.

A contender is a function `(workload, batches, steps, stopwatch)`. It makes `1 + steps` optimizer steps on the batches
from number 0 on. It starts the stopwatch after the first step, which loads and allocates what the later steps use, and
stops it after the last. It returns the number of tokens that the timed steps computed, padding included.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import TrainerCallback

from rqa_ray.benchmarks.limit import LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, PlainLoop, set_dropout
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.columns import Ragged
from rqa_ray.data.golds import Golds
from rqa_ray.data.passages import Negatives, PassageTable
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder_settings import read_settings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.losses import InBatchContrastive
from rqa_ray.retriever.model_types import ModelType
from rqa_ray.settings import TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.plan_forward import compile_transformer, plan_forward
from rqa_ray.training.trainer import ContrastiveTrainer

OWN = "rqa_ray"
LIMIT_TOKENS_PER_BATCH = {"cpu": 2_000, "cuda": 32_768}
CACHED_MINI_BATCH = {"cpu": (16,), "cuda": (64, 256)}
CACHED_TOKENS = {"cpu": 2_000, "cuda": 32_768}


@dataclass
class Workload:
    """Pairs of texts with their tokens, and how to train on them."""

    questions: list[str]
    passages: list[str]
    question_tokens: list[np.ndarray]
    passage_tokens: list[np.ndarray]
    passage_ids: np.ndarray
    model_folder: str
    max_seq_length: int
    batch_size: int
    dropout: float
    bf16: bool
    gradient_cache: str = "auto"
    max_tokens_per_chunk: int | None = None
    torch_compile: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def batches(self, seed: int, rank: int = 0, world_size: int = 1) -> GlobalBatches:
        """Returns the seeded batches that all contenders train on."""
        ids = self.passage_ids
        passages = PassageTable.of(ids, _ragged(self.passage_tokens))
        rows = TrainingRows(
            questions=_ragged(self.question_tokens),
            passage_ids=ids,
            golds=Golds(ids, np.arange(len(ids) + 1)),
            table=passages,
            negatives=Negatives.of(passages, np.zeros(0, np.int64), np.zeros(len(ids) + 1, np.int64)),
            pairs=np.arange(len(ids)),
        )
        return GlobalBatches(rows, self.batch_size, 0.0, seed, pad_id=0, rank=rank, world_size=world_size)


@dataclass
class Stopwatch:
    """Measures wall time, CPU time of this process (all threads) and peak memory between start and stop."""

    device: torch.device
    figures: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        self._synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.started_at = time.time()
        self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self._synchronize()
        wall, cpu = self.started
        self.figures |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        self.figures["peak_memory_gb"] = peak / 1e9

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


Contender = Callable[[Workload, GlobalBatches, int, Stopwatch], int]


def own(workload: Workload, batches: GlobalBatches, steps: int, stopwatch: Stopwatch) -> int:
    """Runs this project: ContrastiveTrainer's own loop, as in jobs/train.py."""
    settings = TrainSettings(
        temperature=TEMPERATURE,
        gradient_cache=workload.gradient_cache,
        max_tokens_per_chunk=workload.max_tokens_per_chunk,
    )
    clock = _Clock(steps, stopwatch)
    with tempfile.TemporaryDirectory() as scratch:
        args = RetrieverTrainingArguments(
            output_dir=scratch,
            report_to="none",
            disable_tqdm=True,
            bf16=workload.bf16,
            torch_compile=workload.torch_compile,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            max_steps=10_000,  # the stopwatch ends the loop
            logging_steps=steps + 1,
            eval_strategy="no",
            save_strategy="no",
            ddp_broadcast_buffers=False,
            ddp_find_unused_parameters=False,
            use_cpu=workload.device.type == "cpu",
        )
        encoder_settings = read_settings(workload.model_folder, max_seq_length=workload.max_seq_length)
        encoder = load_encoder(workload.model_folder, encoder_settings, workload.dropout)
        if args.torch_compile:
            args = compile_transformer(encoder, args)
        plan = plan_forward(settings, args, encoder, batches)
        one = _ragged(workload.passage_tokens[:1])
        evaluator = RetrievalEvaluator(
            Corpus(workload.passage_ids[:1], one, np.zeros(1, np.int64)),
            {"eval": Questions(one, Golds(workload.passage_ids[:1], np.arange(2)))},
            Embedder(encoder, EmbedOptions(0, plan.max_tokens, 1)),
        )
        planned, loss = batches.with_plan(plan), InBatchContrastive(TEMPERATURE)
        trainer = ContrastiveTrainer(encoder, loss, args, planned, evaluator, callbacks=[clock])
        trainer.train()
    stopwatch.figures["data_wait_share"] = trainer.state.log_history[0]["data_wait_share"]
    return sum(
        token_batch.num_tokens for index in range(1, steps + 1) for token_batch in planned.make(index).token_batches
    )


class _Clock(TrainerCallback):
    def __init__(self, steps: int, stopwatch: Stopwatch) -> None:
        self.steps, self.stopwatch = steps, stopwatch

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.stopwatch.start()
        elif state.global_step == self.steps + 1:
            self.stopwatch.stop()
            control.should_training_stop = True


def limit(workload: Workload, batches: GlobalBatches, steps: int, stopwatch: Stopwatch, packed: bool) -> int:
    """Runs the limit: sorted token batches, padded or packed."""
    plain = PlainLoop(workload.model_folder, workload.dropout, workload.bf16, workload.device)
    max_tokens = LIMIT_TOKENS_PER_BATCH[workload.device.type]
    return _timed_steps(
        lambda index: plain.step(*_tokens(workload, batches, index), max_tokens, packed), steps, stopwatch
    )


def localrqa(workload: Workload, batches: GlobalBatches, steps: int, stopwatch: Stopwatch) -> int:
    """Trains LocalRQA's way: every text is padded to the longest allowed length, with gradient checkpointing."""
    plain = PlainLoop(workload.model_folder, workload.dropout, workload.bf16, workload.device)
    plain.model.activation_checkpointing_enable()

    def step(index: int) -> int:
        with torch.autocast(workload.device.type, torch.bfloat16, enabled=workload.bf16):
            parts = [plain.padded(rows, workload.max_seq_length) for rows in _tokens(workload, batches, index)]
        plain.learn(*(part[0] for part in parts))
        return sum(part[1] for part in parts)

    return _timed_steps(step, steps, stopwatch)


def sentence_transformers(
    workload: Workload,
    batches: GlobalBatches,
    steps: int,
    stopwatch: Stopwatch,
    mini_batch: int | None = None,
    mini_batch_tokens: int | None = None,
) -> int:
    """Runs sentence-transformers' MultipleNegativesRankingLoss, or its cached variant.

    The cached variant has mini-batches of so many texts, or of at most so many tokens that are no padding.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    model = SentenceTransformer(workload.model_folder, device=workload.device.type)
    model.max_seq_length = workload.max_seq_length
    set_dropout(model, workload.dropout)
    # Around the model, as accelerate does, so that the second forward pass of the cached loss is in mixed precision
    # too.
    mixed = torch.autocast(workload.device.type, torch.bfloat16, enabled=workload.bf16)
    model.forward = mixed(model.forward)  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    scale = 1 / TEMPERATURE
    size = min(mini_batch or workload.batch_size, workload.batch_size)
    loss: nn.Module = (
        CachedMultipleNegativesRankingLoss(model, scale, mini_batch_size=size, mini_batch_num_tokens=mini_batch_tokens)
        if mini_batch or mini_batch_tokens
        else MultipleNegativesRankingLoss(model, scale=scale)
    )
    model.train()

    def step(index: int) -> int:
        rows = batches.take(index)[1]
        columns: list[Any] = [[texts[row] for row in rows] for texts in (workload.questions, workload.passages)]
        features = [
            {
                name: value.to(workload.device)
                for name, value in model.preprocess(texts).items()
                if torch.is_tensor(value)
            }
            for texts in columns
        ]
        loss(features, None).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return sum(part["input_ids"].numel() for part in features)

    return _timed_steps(step, steps, stopwatch)


def limits(kind: ModelType) -> dict[str, Contender]:
    """Returns both limits, of which the faster one counts; the plain loop packs no causal and no windowed model."""
    padded: dict[str, Contender] = {"limit, padded token batches": partial(limit, packed=False)}
    packs = kind.packed and not kind.causal and not kind.window
    return padded | ({"limit, no padding": partial(limit, packed=True)} if packs else {})


def peers(device: torch.device) -> dict[str, dict[str, Contender]]:
    """Returns what users have today, by the names of `--peer`."""
    most = CACHED_TOKENS[device.type]
    cached: dict[str, Contender] = {
        f"sentence-transformers cached, {most:,} tokens": partial(sentence_transformers, mini_batch_tokens=most)
    }
    for size in CACHED_MINI_BATCH[device.type]:
        cached[f"sentence-transformers cached, mini-batch {size}"] = partial(sentence_transformers, mini_batch=size)
    return {
        "sentence-transformers": {"sentence-transformers": sentence_transformers},
        "cached": cached,
        "LocalRQA": {"LocalRQA's way": localrqa},
    }


def _timed_steps(step: Callable[[int], int], steps: int, stopwatch: Stopwatch) -> int:
    step(0)
    stopwatch.start()
    tokens = sum(step(index) for index in range(1, steps + 1))
    stopwatch.stop()
    return tokens


def _tokens(workload: Workload, batches: GlobalBatches, index: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rows = batches.take(index)[1]
    return [workload.question_tokens[row] for row in rows], [workload.passage_tokens[row] for row in rows]


def _ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged([pa.array(rows, pa.list_(pa.int32()))], np.arange(len(rows)))
