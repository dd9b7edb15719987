"""sentence-transformers in `jobs/benchmark.py quality`: its best losses, as its documents advise to use them.

A peer trains on the same pairs, with the same batch size, learning rate and precision, and encodes as many texts. Its
package `datasets` has to be installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import set_seed

from rqa_ray.benchmarks.limit import set_dropout
from rqa_ray.benchmarks.quality_data import DataSet
from rqa_ray.benchmarks.quality_runs import Ranked, Setup, rank_folder


def with_mined_negatives(model: Any, data: DataSet, setup: Setup) -> tuple[Any, Any]:
    """Returns data and loss: MultipleNegativesRankingLoss with a negative from sentence-transformers' own miner."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import mine_hard_negatives

    mined = mine_hard_negatives(
        _pairs(data),
        model,
        corpus=data.texts,
        relative_margin=0.05,
        range_max=100,
        num_negatives=1,
        sampling_strategy="random",
        verbose=False,
    )
    return mined, CachedMultipleNegativesRankingLoss(model, scale=1 / setup.temperature)


def guided_by_base(model: Any, data: DataSet, setup: Setup) -> tuple[Any, Any]:
    """Returns data and loss: CachedGISTEmbedLoss, in which the pretrained model masks false negatives of a batch."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss

    guide = SentenceTransformer(setup.model.folder)
    guide.max_seq_length = model.max_seq_length
    return _pairs(data), CachedGISTEmbedLoss(model, guide, temperature=setup.temperature)


PEERS: dict[str, Callable[[Any, DataSet, Setup], tuple[Any, Any]]] = {
    "sentence-transformers, mined": with_mined_negatives,
    "sentence-transformers, GIST": guided_by_base,
}


def train_peer(
    data: DataSet,
    setup: Setup,
    prepare: Callable[[Any, DataSet, Setup], tuple[Any, Any]],
    num_texts: int,
    seed: int,
) -> Ranked:
    """Trains a peer until `num_texts` texts are encoded."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    model: Any = SentenceTransformer(setup.model.folder)
    model.max_seq_length = setup.model.settings.max_seq_length
    set_dropout(model, 0.0)
    set_seed(seed)  # the miner draws before the trainer sets its seed
    examples, loss = prepare(model, data, setup)
    texts_per_row = len(examples.column_names)
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        args = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            max_steps=max(1, round(num_texts / (texts_per_row * setup.batch_size))),
            per_device_train_batch_size=setup.batch_size,
            learning_rate=setup.learning_rate,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            bf16=setup.bf16,
            use_cpu=not torch.cuda.is_available(),
            batch_sampler="no_duplicates",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        SentenceTransformerTrainer(model=model, args=args, train_dataset=examples, loss=loss).train()
        model.save(scratch)
        return rank_folder(data, setup, scratch)


def _pairs(data: DataSet) -> Any:
    from datasets import Dataset

    questions, golds = zip(*data.pairs, strict=True)
    return Dataset.from_dict({"anchor": list(questions), "positive": list(golds)})
