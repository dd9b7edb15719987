"""Puts the parts of a trainer together: batches, forward plan, evaluator, loss, and rounds of hard negatives.

This file does not import Ray: workers of Ray Train and benchmarks in one process use it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.data.windows import WindowedRows
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.retriever.adapters import add_adapters
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.retriever.losses import make_loss
from rqa_ray.retriever.matryoshka import refuse_more_than
from rqa_ray.retriever.sharding import shard
from rqa_ray.settings import TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.mining_pass import MiningTexts
from rqa_ray.training.plan_forward import plan_forward
from rqa_ray.training.rounds import Rounds, stand_ins
from rqa_ray.training.sharded_trainer import ShardedTrainer
from rqa_ray.training.trainer import ContrastiveTrainer


@dataclass(frozen=True)
class TrainingData:
    """The tokenized data of a run, as one rank holds them."""

    rows: TrainingRows | WindowedRows
    corpus: Corpus
    questions: dict[str, Questions]  # by split: eval, maybe test
    mining: MiningTexts | None = None  # None if no hard negatives are mined
    bm25: dict[str, np.ndarray] | None = None  # positions (Q, K) of BM25's best by split, if a hybrid is measured
    sources: np.ndarray | None = None  # (N,) the source of each row, if each batch has rows of one source


def assemble(
    encoder: Encoder,
    args: RetrieverTrainingArguments,
    settings: TrainSettings,
    data: TrainingData,
    micro_batch: int,
    *,
    eval_precision: torch.dtype | None = None,
    plan: ForwardPlan | None = None,
    memory_sharers: int = 1,
    evaluates_beside: bool = False,
    fsdp: bool = False,
) -> ContrastiveTrainer:
    """Builds the trainer of this rank.

    Args:
        micro_batch: questions of all ranks that meet in one loss.
        eval_precision: the type to which evaluations autocast.
        plan: the forward plan of the run that is resumed.
        memory_sharers: the number of runs that may share this node's memory.
        evaluates_beside: whether evaluations are made by other processes.
        fsdp: whether each rank holds a shard of the encoder.
    """
    batches = GlobalBatches(
        data.rows,
        global_batch_size=micro_batch,
        hard_neg_ratio=settings.hard_neg_ratio,
        seed=args.seed if args.data_seed is None else args.data_seed,
        pad_id=encoder.tokenizer.pad_token_id,
        rank=args.process_index,
        world_size=args.world_size,
        negatives_per_question=settings.negatives_per_question,
        sources=data.sources,
    )
    if settings.lora_r:
        add_adapters(encoder, settings, settings.model_name_or_path or "", args.seed)
    if fsdp:
        shard(encoder, args.device, args.bf16)
    texts = data.mining
    if texts:
        batches.set_negatives(stand_ins(data.corpus.table, len(data.rows), settings.mine_negatives))
    chosen = plan_forward(settings, args, encoder, batches, plan, memory_sharers)
    if fsdp:  # all token batches are cached or none, because a share might be another number of them on each rank
        chosen = replace(chosen, gradient_cache=float(chosen.gradient_cache > 0))
    batches = batches.with_plan(chosen)
    options = EmbedOptions(
        batches.pad_id, chosen.max_tokens, args.per_device_eval_batch_size, chosen.packed, eval_precision
    )
    torch.manual_seed(args.seed)  # for the initial values of a loss's own parameters
    dimensions = settings.matryoshka_dims or ()
    refuse_more_than(encoder.dimensions, dimensions)
    evaluator = RetrievalEvaluator(data.corpus, data.questions, Embedder(encoder, options), data.bm25, dimensions)
    kind = ShardedTrainer if fsdp else ContrastiveTrainer
    return kind(
        encoder,
        make_loss(settings, encoder.settings.similarity),
        args,
        batches,
        evaluator,
        trust_remote_code=settings.trust_remote_code,
        evaluates_beside=evaluates_beside,
        patience=settings.early_stopping_patience or None,
        rounds=Rounds(settings, texts, batches, evaluator, args.metric_for_best_model or "") if texts else None,
    )
