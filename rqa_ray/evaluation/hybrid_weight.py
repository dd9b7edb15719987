"""Chooses the weight of the embedding model in a hybrid, on questions that are not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Hybrid
from rqa_ray.corpus.hybrid_pairs import HybridWeight, ZScores
from rqa_ray.corpus.mining import Candidates
from rqa_ray.data.golds import GoldIds
from rqa_ray.evaluation.metrics import TOP_CUTOFF, retrieval_metrics

WEIGHTS = [round(0.05 * step, 2) for step in range(21)]  # possible weights of the embedding model in the sum
WEIGHT_METRIC = "retr/document_ndcg/ndcg10"


def choose_weight(
    hybrid: Hybrid, questions: Sequence[str], embeddings: torch.Tensor, gold_ids: GoldIds, passage_ids: np.ndarray
) -> float:
    """Returns the weight with the best nDCG@10 on these questions, which must not be the scored ones.

    embeddings: (Q, D) of the questions. passage_ids: (P,) of the corpus.
    """
    ranked = hybrid.rank(questions, embeddings, WEIGHTS, TOP_CUTOFF)
    return best_weight({weight: passage_ids[positions] for weight, (_, positions) in ranked.items()}, gold_ids).weight


def best_weight(ranked: Mapping[float, np.ndarray], gold_ids: GoldIds) -> HybridWeight:
    """Returns the weight with the best nDCG@10; of equals, the one that is nearest to one half.

    ranked: passage ids (Q, K) by each of `WEIGHTS`, best first.
    """
    found = {weight: retrieval_metrics(ids, gold_ids)[WEIGHT_METRIC] for weight, ids in ranked.items()}
    best = max(WEIGHTS, key=lambda weight: (found[weight], -abs(weight - 0.5)))
    return HybridWeight(best, found[best], found[1.0], found[0.0])


def weigh(candidates: Candidates, scores: ZScores, gold_ids: GoldIds, passage_ids: np.ndarray) -> HybridWeight:
    """Chooses the weight by rankings of the candidates alone: the best of the model and the best of BM25.

    A passage that is in neither list could only be among the first of the hybrid if its two z-scores, which are below
    the last of both lists, added up to more than those of the first candidates.
    """
    questions = candidates.questions
    places = np.arange(len(questions)) - candidates.offsets[questions]
    shape = len(candidates.offsets) - 1, int(places.max(initial=0)) + 1
    ids = np.full(shape, np.iinfo(np.int64).min)  # where a question has fewer candidates
    ranked = {}
    for weight in WEIGHTS:
        order = np.lexsort([candidates.positions, -scores.mixed(weight), questions])
        ids[questions, places] = passage_ids[candidates.positions[order]]
        ranked[weight] = ids[:, :TOP_CUTOFF].copy()
    return best_weight(ranked, gold_ids)
