"""One optimizer step of each contender on the same texts: this project, the limit, and how its peers do it.

Each `*_step(workload)` returns a function that makes the step on batch `index` of some batches and returns the tokens
that it computed on, padding included.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rqa_ray.arguments import RetrieverTrainingArguments, Settings
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.rows import Corpus, Golds, Questions, Ragged, TrainingRows
from rqa_ray.evaluation.evaluate import RetrievalEvaluator
from rqa_ray.retriever.encoder import length_sorted_chunks
from rqa_ray.retriever.saving import load_encoder, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.training.build import choose
from rqa_ray.training.trainer import ContrastiveTrainer

TEMPERATURE, LEARNING_RATE, MAX_GRAD_NORM = 0.05, 1e-5, 1.0
LIMIT_TOKENS_PER_CHUNK = {"cpu": (1_000, 2_000), "cuda": (16_384, 65_536)}
CACHED_MINI_BATCH = {"cpu": 16, "cuda": 256}

Step = Callable[[GlobalBatches, int], int]


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

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def batches(self, batch_size: int) -> GlobalBatches:
        """The seeded batches that all contenders train on."""
        ids = self.passage_ids
        rows = TrainingRows(
            questions=_ragged(self.question_tokens),
            passages=_ragged(self.passage_tokens),
            passage_ids=ids,
            golds=Golds(ids, np.arange(len(ids) + 1)),
            negatives=_ragged([]),
            negative_ids=np.zeros(0, np.int64),
            negative_of=np.zeros(len(ids) + 1, np.int64),
        )
        return GlobalBatches(rows, batch_size, 0.0, 0, max_tokens_per_chunk=1_000, pad_id=0)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def rqa_ray_step(workload: Workload) -> Step:
    """This project: ContrastiveTrainer's step, as jobs/train.py makes it."""
    settings = Settings(
        temperature=TEMPERATURE,
        gradient_cache=workload.gradient_cache,  # type: ignore[arg-type]
        max_tokens_per_chunk=workload.max_tokens_per_chunk,
    )
    args = RetrieverTrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved
        report_to="none",
        bf16=workload.bf16,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        use_cpu=workload.device.type == "cpu",
    )
    encoder_settings = read_settings(workload.model_folder, max_seq_length=workload.max_seq_length)
    encoder = load_encoder(workload.model_folder, encoder_settings, workload.dropout)
    batches = workload.batches(workload.batch_size)
    choices = choose(settings, args, encoder, batches.rows, workload.batch_size)
    one = _ragged(workload.passage_tokens[:1])
    evaluator = RetrievalEvaluator(
        Corpus(workload.passage_ids[:1], one, np.zeros(1, np.int64)),
        {"eval": Questions(one, Golds(workload.passage_ids[:1], np.arange(2)))},
        temperature=TEMPERATURE,
        pad_id=0,
        max_tokens_per_chunk=choices["max_tokens_per_chunk"],
        max_rows_per_chunk=1,
    )
    tokenizer = TextTokenizer(workload.model_folder, encoder_settings).tokenizer
    trainer = ContrastiveTrainer(
        encoder, tokenizer, args, batches, evaluator, temperature=TEMPERATURE, choices=choices
    )
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()

    def step(batches: GlobalBatches, index: int) -> int:
        batches.max_tokens_per_chunk = choices["max_tokens_per_chunk"]
        batch = batches[index]
        trainer.training_step(trainer.model, batch)
        _update(trainer.model, optimizer)
        return sum(chunk["input_ids"].numel() for chunk in batch.chunks)

    return step


def limit_step(workload: Workload, max_tokens: int) -> Step:
    """The limit: a plain loop over transformers' model and length-sorted chunks, the graph kept."""
    model, optimizer = _plain_model(workload)

    def step(batches: GlobalBatches, index: int) -> int:
        texts = _rows(workload.question_tokens, batches, index) + _rows(workload.passage_tokens, batches, index)
        chunks, order = length_sorted_chunks(texts, max_tokens, pad_id=0)
        with workload.autocast():
            embeddings = torch.cat([_mean_pooled(model, _to(chunk, workload.device)) for chunk in chunks])
        _in_batch_loss(*embeddings[order.to(embeddings.device)].chunk(2)).backward()
        _update(model, optimizer)
        return sum(chunk["input_ids"].numel() for chunk in chunks)

    return step


def localrqa_step(workload: Workload) -> Step:
    """LocalRQA's way: every text padded to the longest length, gradient checkpointing."""
    model, optimizer = _plain_model(workload)
    model.activation_checkpointing_enable()

    def step(batches: GlobalBatches, index: int) -> int:
        embeddings, tokens = [], 0
        for all_rows in (workload.question_tokens, workload.passage_tokens):
            rows = _rows(all_rows, batches, index)
            ids = torch.zeros(len(rows), workload.max_seq_length, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(row)], mask[place, : len(row)] = torch.from_numpy(row.astype(np.int64)), 1
            with workload.autocast():
                chunk = _to({"input_ids": ids, "attention_mask": mask}, workload.device)
                embeddings.append(_mean_pooled(model, chunk))
            tokens += ids.numel()
        _in_batch_loss(*embeddings).backward()
        _update(model, optimizer)
        return tokens

    return step


def sentence_transformers_step(workload: Workload, cached: bool) -> Step:
    """sentence-transformers' MultipleNegativesRankingLoss, or its cached variant."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    model = SentenceTransformer(workload.model_folder, device=workload.device.type)
    model.max_seq_length = workload.max_seq_length
    _set_dropout(model, workload.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    mini_batch = min(CACHED_MINI_BATCH[workload.device.type], workload.batch_size)
    loss: nn.Module = (
        CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch)
        if cached
        else MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    )
    model.train()

    def step(batches: GlobalBatches, index: int) -> int:
        rows = batches.batch_rows(index)
        columns: list[Any] = [[texts[row] for row in rows] for texts in (workload.questions, workload.passages)]
        features = [_to(model.preprocess(texts), workload.device) for texts in columns]
        with workload.autocast():
            value = loss(features, None)
        value.backward()
        _update(model, optimizer)
        return sum(part["input_ids"].numel() for part in features)

    return step


def _plain_model(workload: Workload) -> tuple[Any, torch.optim.Optimizer]:
    settings = read_settings(workload.model_folder, max_seq_length=workload.max_seq_length)
    model = load_encoder(workload.model_folder, settings, workload.dropout).transformer.to(workload.device)
    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def _set_dropout(model: nn.Module, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def _mean_pooled(model: nn.Module, chunk: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = chunk["attention_mask"][:, :, None].float()
    tokens = model(**chunk).last_hidden_state.float()
    return nn.functional.normalize((tokens * weights).sum(1) / weights.sum(1), dim=1)


def _in_batch_loss(questions: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    labels = torch.arange(len(questions), device=questions.device)
    return nn.functional.cross_entropy(questions.float() @ passages.float().T / TEMPERATURE, labels)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged([pa.array(rows, pa.list_(pa.int32()))], np.arange(len(rows)))


def _rows(rows: list[np.ndarray], batches: GlobalBatches, index: int) -> list[np.ndarray]:
    return [rows[row] for row in batches.batch_rows(index)]


def _to(batch: Any, device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
