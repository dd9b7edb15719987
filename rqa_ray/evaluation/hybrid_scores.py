"""Collects, while the corpus is encoded, what a hybrid with BM25 needs to know about the model's scores.

A hybrid adds z-scores over the whole corpus (`corpus/bm25.py`). The pass keeps the moments of the passages, from which
the mean and the deviation of a question's scores follow, and no matrix of all scores. Also, the pass scores the best
passages of BM25, which the model may not have among its own best.

Shapes: Q questions of all splits, K passages that BM25 found for each, D dimensions, N passages of a block.
"""

from __future__ import annotations

import numpy as np
import torch

from rqa_ray.corpus.hybrid_pairs import PassageMoments
from rqa_ray.corpus.mining import PairScores
from rqa_ray.evaluation.results import OfBm25
from rqa_ray.retriever import distributed


class HybridScores:
    """Sees the embeddings of the whole corpus once, each rank those of its share."""

    def __init__(self, questions: torch.Tensor, found: np.ndarray) -> None:
        """Takes the embeddings (Q, D) of the questions, and the positions (Q, K) of BM25's best passages."""
        self.questions, self.found = questions, found
        asked = np.repeat(np.arange(len(found)), found.shape[1])
        self.pairs = PairScores(asked, found.ravel())
        self.moments = PassageMoments(questions.shape[1], questions.device)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        """Takes a block of passages: embeddings (N, D) and positions (N,)."""
        self.pairs.add(self.questions, positions, passages)
        self.moments.add(passages)

    def merge(self) -> None:
        """Merges what all ranks have seen, in the order of ranks, so that all end with the same bits."""
        merge_pairs(self.pairs, self.questions.device)
        self.moments.merge_ranks()

    def result(self, rows: slice) -> OfBm25:
        """Returns what was found for some of the questions."""
        scores = self.pairs.scores.reshape(self.found.shape)[rows]
        return OfBm25(self.found[rows], scores, *self.moments.of_questions(self.questions[rows]))


def merge_pairs(pairs: PairScores, device: torch.device) -> None:
    """Merges the scores of pairs that all ranks have seen, so that all ranks end with the same bits."""
    scores = torch.from_numpy(pairs.scores).to(device)
    for part in distributed.gather(scores).view(distributed.world_size(), -1):
        pairs.merge(part.cpu().numpy())
