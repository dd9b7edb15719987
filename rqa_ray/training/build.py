"""The trainer of one rank, built from tokenised tables; what the user left open is chosen here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import torch

from rqa_ray.arguments import RetrieverTrainingArguments, Settings
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.evaluation.evaluate import RetrievalEvaluator
from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.training import outputs
from rqa_ray.training.trainer import CHOICES_FILE, ContrastiveTrainer

TOKENS_PER_CHUNK = {"cpu": 1_000, "cuda": 32_768}  # on CPUs, what stays in the cache: 4,000 take 1.6 times as long
MEMORY_SHARE = 0.5  # of the free memory that the graph of a batch may take before gradient caching steps in


def build_trainer(
    settings: Settings,
    args: RetrieverTrainingArguments,
    encoder: Encoder,
    tokenizer: Any,
    tables: dict[str, list],
    micro_batch: int,
    resume: str | None = None,
) -> ContrastiveTrainer:
    """The trainer of one rank from tokenised tables (`train`, `eval`, `corpus`, maybe `test`)."""
    rows = TrainingRows.from_tables(tables["train"])
    pad_id = tokenizer.pad_token_id or 0
    choices = choose(settings, args, encoder, rows, micro_batch)
    if resume:  # what was found out is used again, what the user says goes first
        before = outputs.read_json(Path(resume) / CHOICES_FILE)
        found_out = [settings.max_tokens_per_chunk is None and "max_tokens_per_chunk"]
        found_out += [settings.gradient_cache == "auto" and "gradient_cache"]
        choices |= {name: before[name] for name in found_out if name}
    batches = GlobalBatches(
        rows,
        global_batch_size=micro_batch,
        hard_neg_ratio=settings.hard_neg_ratio,
        seed=args.seed if args.data_seed is None else args.data_seed,
        max_tokens_per_chunk=choices["max_tokens_per_chunk"],
        pad_id=pad_id,
        rank=args.process_index,
        world_size=args.world_size,
    )
    evaluator = RetrievalEvaluator(
        Corpus.from_tables(tables["corpus"]),
        {split: Questions.from_tables(tables[split]) for split in ("eval", "test") if split in tables},
        temperature=settings.temperature,
        pad_id=pad_id,
        max_tokens_per_chunk=choices["max_tokens_per_chunk"],
        max_rows_per_chunk=args.per_device_eval_batch_size,
        mixed_precision=torch.bfloat16 if args.bf16_full_eval else torch.float16 if args.fp16_full_eval else None,
    )
    return ContrastiveTrainer(
        encoder,
        tokenizer,
        args,
        batches,
        evaluator,
        temperature=settings.temperature,
        choices=choices,
        trust_remote_code=settings.trust_remote_code,
    )


def choose(
    settings: Settings, args: RetrieverTrainingArguments, encoder: Encoder, rows: TrainingRows, micro_batch: int
) -> dict[str, Any]:
    """The settings that are found out: chunk size by device, gradient caching by memory."""
    max_tokens = settings.max_tokens_per_chunk or TOKENS_PER_CHUNK.get(args.device.type, TOKENS_PER_CHUNK["cuda"])
    if settings.gradient_cache != "auto":
        return {"max_tokens_per_chunk": max_tokens, "gradient_cache": settings.gradient_cache == "true"}
    if args.device.type == "cuda":
        free = torch.cuda.mem_get_info(args.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    texts = rows.questions.lengths.mean() + rows.passages.lengths.mean() * (1 + settings.hard_neg_ratio)
    longest = int(max(rows.questions.lengths.max(), rows.passages.lengths.max()))
    needed = encoder.activation_bytes(int(texts * micro_batch / args.world_size), longest)
    too_large = distributed.any_rank(needed > MEMORY_SHARE * free, args.device)
    return {"max_tokens_per_chunk": max_tokens, "gradient_cache": too_large}
