"""The trainer of one rank, built from tokenised tables; what the user left open is chosen here."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.data.windows import WindowedRows
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.places import read_json
from rqa_ray.retriever import attention, distributed
from rqa_ray.retriever.embedder import TOKENS_PER_BATCH, EncodeOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches
from rqa_ray.settings import Settings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.trainer import CHOICES_FILE, ContrastiveTrainer

MEMORY_SHARE = 0.5  # of the free memory that the graph may take: of a token batch, or of a whole batch without caching


def build_trainer(
    settings: Settings,
    args: RetrieverTrainingArguments,
    encoder: Encoder,
    tokenizer: Any,
    rows: TrainingRows | WindowedRows,
    tables: dict[str, list],
    micro_batch: int,
    resume: str | None = None,
    evaluates_beside: bool = False,
    memory_sharers: int = 1,
) -> ContrastiveTrainer:
    """The trainer of one rank from training rows and tokenised tables (`eval`, `corpus`, maybe `test`).

    `memory_sharers` is the number of runs that may share this node's memory.
    """
    if args.torch_compile:
        args = compile_transformer(encoder, args)
    batches = GlobalBatches(
        rows,
        global_batch_size=micro_batch,
        hard_neg_ratio=settings.hard_neg_ratio,
        seed=args.seed if args.data_seed is None else args.data_seed,
        pad_id=tokenizer.pad_token_id or 0,
        rank=args.process_index,
        world_size=args.world_size,
    )
    before = read_json(Path(resume) / CHOICES_FILE) if resume else {}
    if before.get("world_size", args.world_size) != args.world_size:
        before = {}  # other shares of the batch need other memory
    choices = choose(settings, args, encoder, batches, before, memory_sharers)
    options = EncodeOptions(
        batches.pad_id,
        choices["max_tokens_per_chunk"],
        args.per_device_eval_batch_size,
        choices["packed"],
        torch.bfloat16 if args.bf16_full_eval else torch.float16 if args.fp16_full_eval else None,
    )
    evaluator = RetrievalEvaluator(
        Corpus.from_tables(tables["corpus"]),
        {split: Questions.from_tables(tables[split]) for split in ("eval", "test") if split in tables},
        options,
        settings.temperature,
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
        evaluates_beside=evaluates_beside,
    )


def compile_transformer(encoder: Encoder, args: RetrieverTrainingArguments) -> RetrieverTrainingArguments:
    """Compiles the transformer alone, for texts of any number and length; returns arguments that compile no more.

    The Trainer would compile the whole encoder, whose list of token batches is another one in every batch.
    """
    import torch._inductor.config

    torch._inductor.config.fallback_random = True  # torch's own dropout masks: gradient caching replays them
    encoder.transformer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=True)
    encoder.is_compiled = True
    # Elsewhere packed attention is a loop over texts, or a kernel whose backward pass torch cannot compile.
    encoder.can_pack &= attention.has_flash(args.device) and (args.bf16 or args.fp16)
    args = copy.copy(args)
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
    return args


def choose(
    settings: Settings,
    args: RetrieverTrainingArguments,
    encoder: Encoder,
    batches: GlobalBatches,
    before: dict[str, Any] | None = None,
    memory_sharers: int = 1,
) -> dict[str, Any]:
    """What the user leaves open, found out by measuring and set in `batches`; on a resume what was found `before`.

    packed: whether token batches are without padding, where the model and the device can.
    max_tokens_per_chunk: by device, fewer where the graph of such a token batch would not fit in memory.
    gradient_cache: whether the graph of a whole batch would not fit.
    """
    device, before = args.device, before or {}
    encoder.to(device)
    if args.gradient_checkpointing:  # the Trainer does it again, after this has measured what it saves
        encoder.activation_checkpointing_enable(activation_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    mixed = torch.autocast(device.type, torch.bfloat16 if args.bf16 else torch.float16, enabled=args.bf16 or args.fp16)
    works = encoder.can_pack and (device.type == "cpu" or _packing_works(encoder, mixed))
    packed = not distributed.any_rank(not works, device) and before.get("packed", True)
    batches.packed = packed
    # Gradients and the two moments of Adam are still to come.
    num_parameters = sum(value.numel() for value in encoder.parameters())
    sharers = memory_sharers if device.type == "cpu" else 1  # each run has GPUs of its own
    free = MEMORY_SHARE * _free_memory(device) / sharers - 12 * num_parameters

    def graph_bytes(token_batch: TokenBatch) -> float:
        """A token (bytes)."""
        with mixed:
            return encoder.graph_bytes(token_batch.to(device)) / token_batch.num_tokens

    max_tokens = settings.max_tokens_per_chunk or before.get("max_tokens_per_chunk")
    if not max_tokens:
        passages = batches.take(0)[0].passages
        longest = passages[int(passages.lengths.argmax())]
        fitting = free / graph_bytes(length_sorted_batches([longest], 1, batches.pad_id, packed)[0][0])
        # A token batch holds at least one text, so a limit below the longest would save nothing.
        max_tokens = min(TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"]), max(int(fitting), len(longest)))
        max_tokens = int(distributed.gather(torch.tensor([max_tokens], device=device)).min())
    batches.max_tokens_per_chunk = max_tokens

    cached = settings.gradient_cache == "true"
    if settings.gradient_cache == "auto" and "gradient_cache" in before:
        cached = before["gradient_cache"]
    elif settings.gradient_cache == "auto":
        token_batches = batches.make(0).token_batches[::-1]  # from the shortest texts to the longest
        lengths = [token_batch.lengths[-1] for token_batch in token_batches]
        # Linear in the length: what attention keeps of a token is proportional to it, the rest is constant.
        ends = [graph_bytes(token_batch) for token_batch in (token_batches[0], token_batches[-1])]
        a_token = np.interp(lengths, [lengths[0], lengths[-1]], ends)
        needed = float(a_token @ [token_batch.num_tokens for token_batch in token_batches])
        cached = distributed.any_rank(needed > free, device)
    found = {"packed": packed, "max_tokens_per_chunk": max_tokens, "gradient_cache": cached}
    return {**found, "world_size": args.world_size}


def _packing_works(encoder: Encoder, mixed: torch.autocast) -> bool:
    """In training's precision and in evaluation's."""
    with torch.compiler.set_stance("force_eager"):  # compiling for it would take a minute
        with mixed:
            works = encoder.packing_works()
        return works and encoder.packing_works()


def describe(choices: dict[str, Any]) -> str:
    """One line for the start of a run."""
    padding = "no padding" if choices["packed"] else "padded to their longest text"
    caching = "with" if choices["gradient_cache"] else "without"
    return (
        f"token batches of at most {choices['max_tokens_per_chunk']:,} tokens, {padding}; {caching} gradient caching"
    )


def _free_memory(device: torch.device) -> int:
    """Of this rank (bytes)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
