"""Collects, while the corpus is encoded, what a hybrid with BM25 needs to know about the model's scores.

A hybrid adds z-scores over the whole corpus (`corpus/bm25.py`). The mean of a question's scores over the corpus is the
question times the mean of the passages, and the mean square follows from the passages' second moments. So the pass
keeps D x (D + 1) numbers, and no matrix of all scores. Also, the pass scores the best passages of BM25, which the
model may not have among its own best.

Shapes: Q questions of all splits, K passages that BM25 found for each, D dimensions, N passages of a block.
"""

from __future__ import annotations

import numpy as np
import torch

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
        dimensions = questions.shape[1]
        # the sum of the passages, and below it the sum of their outer products
        self.sums = torch.zeros(dimensions + 1, dimensions, dtype=torch.float64, device=questions.device)
        self.number = torch.zeros(1, dtype=torch.float64, device=questions.device)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        """Takes a block of passages: embeddings (N, D) and positions (N,)."""
        self.pairs.add(self.questions, positions, passages)
        doubled = passages.double()
        self.sums[0] += doubled.sum(0)
        self.sums[1:] += doubled.T @ doubled
        self.number += len(passages)

    def merge(self) -> None:
        """Merges what all ranks have seen, in the order of ranks, so that all end with the same bits."""
        ranks, device = distributed.world_size(), self.questions.device
        for part in distributed.gather(torch.from_numpy(self.pairs.scores).to(device)).view(ranks, -1):
            self.pairs.merge(part.cpu().numpy())
        self.sums = distributed.gather(self.sums).view(ranks, *self.sums.shape).sum(0)
        self.number = distributed.gather(self.number).sum()

    def result(self, rows: slice) -> OfBm25:
        """Returns what was found for some of the questions."""
        asked, means = self.questions[rows].double(), self.sums / self.number
        mean = asked @ means[0]
        square = ((asked @ means[1:]) * asked).sum(1)
        deviation = (square - mean**2).clamp(min=0).sqrt()
        scores = self.pairs.scores.reshape(self.found.shape)[rows]
        return OfBm25(self.found[rows], scores, mean.cpu().numpy(), deviation.cpu().numpy())
