"""Chooses the weight of the embedding model in a hybrid, on questions that are not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Hybrid
from rqa_ray.corpus.hybrid_pairs import HybridWeight, ZScores
from rqa_ray.corpus.mining import Candidates
from rqa_ray.evaluation.metrics import TOP_CUTOFF, GoldIds, retrieval_metrics

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


def weigh(candidates: Candidates, scores: ZScores, gold_ids: GoldIds, passage_ids: np.ndarray) -> HybridWeight:
    """Chooses the weight by rankings of the candidates alone: the best of the model and the best of BM25.

    A passage that is in neither list could only be among the first of the hybrid if its two z-scores, which are below
    the last of both lists, added up to more than those of the first candidates.
    """
    questions = candidates.questions
    places = np.arange(len(questions)) - candidates.offsets[questions]
    shape = len(candidates.offsets) - 1, int(places.max(initial=0)) + 1
    ids = np.full(shape, np.iinfo(np.int64).min)  # where a question has fewer candidates
    found = {}
    for weight in WEIGHTS:
        order = np.lexsort([candidates.positions, -scores.mixed(weight), questions])
        ids[questions, places] = passage_ids[candidates.positions[order]]
        found[weight] = retrieval_metrics(ids[:, :TOP_CUTOFF], gold_ids)[WEIGHT_METRIC]
    best = best_weight(found)
    return HybridWeight(best, found[best], found[1.0], found[0.0])
