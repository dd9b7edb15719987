"""Scores candidates of mining by the hybrid of BM25 and the model that mines, on a cluster.

Shapes: E questions that choose the weight, N pairs of a question and a passage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import ray

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.encoded import Encoded
from rqa_ray.corpus.hybrid_pairs import HybridWeight, ZScores, z_scores
from rqa_ray.corpus.mining import Candidates, PairScores
from rqa_ray.corpus.mining_inputs import EvalSplit
from rqa_ray.corpus.text_tasks import bm25_rankings, word_z_scores
from rqa_ray.data.golds import GoldIds

DEPTH = 100  # candidates of each ranking for the questions that choose the weight
EVEN = 0.5  # weight of the model if no questions choose the weight

# `evaluation/hybrid_weight.py:weigh`, which has the metrics
Weigh = Callable[[Candidates, ZScores, GoldIds, np.ndarray], HybridWeight]


class HybridTeacher:
    """Scores pairs by z-scores over the whole corpus: those of the model, and those of BM25."""

    def __init__(self, encoded: Encoded, index: ray.ObjectRef, beside: Sequence[str], workers: Workers) -> None:
        """Takes the encoded corpus, a `Bm25` of it, and the texts of the golds `beside` the corpus."""
        self.encoded, self.index, self.beside, self.workers = encoded, index, beside, workers
        self.moments = encoded.moments()
        self.weight = EVEN

    def choose_weight(self, asked: EvalSplit, shards: Sequence[str], passage_ids: np.ndarray, weigh: Weigh) -> str:
        """Chooses the weight on questions whose embeddings are in some shards; returns words for the user."""
        bm25 = bm25_rankings(self.index, asked.questions, DEPTH, self.workers)
        rows, columns = np.nonzero(bm25 >= 0)
        pairs = PairScores(rows, bm25[rows, columns])
        scores, positions, _ = self.encoded.search(shards, DEPTH, pairs)
        lexical = np.zeros(bm25.shape, np.float32)
        lexical[rows, columns] = pairs.scores
        candidates = Candidates.united((positions, scores), (bm25, lexical))
        found = self.z_scores(asked.questions, shards, candidates.questions, candidates.positions, candidates.scores)
        chosen = weigh(candidates, found, asked.golds, passage_ids)
        self.weight = chosen.weight
        return chosen.describe()

    def z_scores(
        self,
        questions: Sequence[str],
        shards: Sequence[str],
        rows: np.ndarray,
        positions: np.ndarray,
        dense: np.ndarray,
    ) -> ZScores:
        """Returns the z-scores (N,) of pairs from the model's scores `dense` (N,).

        The embeddings of the questions are in the shards; `rows` (N,) are numbers of these questions.
        """
        means, deviations = self.moments.of_questions(self.encoded.embeddings_of(shards))
        lexical = word_z_scores(self.index, questions, self.beside, rows, positions, self.workers)
        return ZScores(z_scores(dense, means[rows], deviations[rows]), lexical)
