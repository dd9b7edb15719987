"""The lexical baseline, BM25 through bm25s, and its fusion with an embedding model; both in one process's memory.

Fusion: the scores of either are made comparable by z-scores over the whole corpus, question by question, and added
with a weight.

q questions of a slice, P passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rqa_ray.corpus.topk import RunningTopK, question_slices


class Bm25:
    """BM25 (Lucene's, k1 1.5, b 0.75) over texts, English stop words left out: the defaults of bm25s."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        self.num_passages = len(texts)

    def scores(self, questions: Sequence[str]) -> torch.Tensor:
        """(q, P) fp32."""
        blank = np.zeros(self.num_passages, np.float32)  # of a question without words
        tokens = self._tokenize(list(questions), return_ids=False, show_progress=False)
        return torch.from_numpy(np.stack([self._index.get_scores(row) if row else blank for row in tokens]))

    def rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions (Q, k), best first."""
        topk = RunningTopK(len(questions), min(k, self.num_passages))
        for part in question_slices(len(questions), self.num_passages):
            topk.add(self.scores(questions[part]), torch.arange(self.num_passages), part.start)
        scores, positions = topk.result()
        return scores.numpy(), positions.numpy()


class Hybrid:
    """BM25 and embeddings of the same passages together."""

    def __init__(self, bm25: Bm25, passages: torch.Tensor) -> None:
        """passages: (P, D) embeddings in document order."""
        self.bm25, self.passages = bm25, passages

    def rank(
        self, questions: Sequence[str], embeddings: torch.Tensor, weights: Sequence[float], k: int
    ) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """By weight of the embeddings' z-scores, the rest BM25's: scores and positions (Q, k), best first."""
        number = self.bm25.num_passages
        best = {weight: RunningTopK(len(questions), min(k, number)) for weight in weights}
        for part in question_slices(len(questions), number):
            dense = _z_scores(embeddings[part] @ self.passages.T)
            lexical = _z_scores(self.bm25.scores(questions[part]))
            for weight, topk in best.items():
                topk.add(weight * dense + (1 - weight) * lexical, torch.arange(number), part.start)
        results = {weight: topk.result() for weight, topk in best.items()}
        return {weight: (scores.numpy(), positions.numpy()) for weight, (scores, positions) in results.items()}


def _z_scores(scores: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(scores, dim=1, keepdim=True, correction=0)
    return (scores - mean) / deviation.clamp(min=1e-9)
