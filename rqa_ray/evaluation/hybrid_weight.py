"""Chooses the weight of the embedding model in a hybrid, on questions that are not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Hybrid
from rqa_ray.evaluation.metrics import GoldIds, retrieval_metrics

WEIGHTS = [round(0.05 * step, 2) for step in range(21)]  # possible weights of the embedding model in the sum
WEIGHT_METRIC = "retr/document_ndcg/ndcg10"


def choose_weight(
    hybrid: Hybrid, questions: Sequence[str], embeddings: torch.Tensor, gold_ids: GoldIds, passage_ids: np.ndarray
) -> float:
    """Returns the weight with the best nDCG@10 on these questions, which must not be the scored ones.

    embeddings: (Q, D) of the questions. passage_ids: (P,) of the corpus.
    """
    found = {
        weight: retrieval_metrics(passage_ids[positions], gold_ids)[WEIGHT_METRIC]
        for weight, (_, positions) in hybrid.rank(questions, embeddings, WEIGHTS, 10).items()
    }
    return best_weight(found)


def best_weight(found: Mapping[float, float]) -> float:
    """Returns the weight with the best metric; of equals, the one that is nearest to one half."""
    return max(WEIGHTS, key=lambda weight: (found[weight], -abs(weight - 0.5)))
