"""The lexical baseline, BM25 through bm25s, and its fusion with an embedding model; both in one process's memory.

Fusion: the scores of either are made comparable by z-scores over the whole corpus, question by question, and added
with a weight.

q questions of a slice, P passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import GoldIds, retrieval_metrics
from rqa_ray.evaluation.search import RunningTopK, question_slices

WEIGHTS = [round(0.05 * step, 2) for step in range(21)]  # of the embedding model in the sum
WEIGHT_METRIC = "retr/document_ndcg/ndcg10"


class Bm25:
    """BM25 (Lucene's, k1 1.5, b 0.75) over texts, English stop words left out: the defaults of bm25s."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises InputError where bm25s is not installed."""
        try:
            import bm25s
        except ImportError:
            raise InputError('bm25 and hybrid need bm25s; pip install "rqa_ray[bm25]"') from None
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        self.num_passages = len(texts)

    def scores(self, questions: Sequence[str]) -> torch.Tensor:
        """(q, P) fp32."""
        tokens = self._tokenize(list(questions), return_ids=False, show_progress=False)
        return torch.from_numpy(np.stack([self._score(row) for row in tokens]))

    def _score(self, tokens: list[str]) -> np.ndarray:
        known = [token for token in tokens if token in self._index.vocab_dict]
        return self._index.get_scores(known) if known else np.zeros(self.num_passages, np.float32)


class Hybrid:
    """BM25 and embeddings of the same passages together."""

    def __init__(self, bm25: Bm25, passages: torch.Tensor) -> None:
        """passages: (P, D) embeddings in document order."""
        self.bm25, self.passages = bm25, passages

    def scores(self, questions: Sequence[str], embeddings: torch.Tensor, weight: float) -> torch.Tensor:
        """(q, P) fp32: `weight` of the embeddings' z-scores, the rest BM25's."""
        dense = _z_scores(embeddings @ self.passages.T)
        return weight * dense + (1 - weight) * _z_scores(self.bm25.scores(questions))

    def choose_weight(
        self, questions: Sequence[str], embeddings: torch.Tensor, gold_ids: GoldIds, passage_ids: np.ndarray
    ) -> float:
        """The weight of the best nDCG@10 on these questions, which have to be others than those that are scored."""
        found = {}
        for weight in WEIGHTS:
            positions = self.rank(questions, embeddings, weight, 10)[1]
            found[weight] = retrieval_metrics(passage_ids[positions], gold_ids)[WEIGHT_METRIC]
        return max(WEIGHTS, key=lambda weight: (found[weight], -abs(weight - 0.5)))

    def rank(
        self, questions: Sequence[str], embeddings: torch.Tensor, weight: float, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions (Q, k), best first."""
        parts = (
            (part, self.scores(questions[part], embeddings[part], weight))
            for part in question_slices(len(questions), self.bm25.num_passages)
        )
        return _top_k(parts, len(questions), self.bm25.num_passages, k)


def rank_bm25(bm25: Bm25, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions (Q, k), best first."""
    parts = ((part, bm25.scores(questions[part])) for part in question_slices(len(questions), bm25.num_passages))
    return _top_k(parts, len(questions), bm25.num_passages, k)


def _top_k(
    parts: Iterator[tuple[slice, torch.Tensor]], num_questions: int, num_passages: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    topk = RunningTopK(num_questions, min(k, num_passages))
    for part, scores in parts:
        topk.add(scores, torch.arange(num_passages), part.start)
    scores, positions = topk.result()
    return scores.numpy(), positions.numpy()


def _z_scores(scores: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(scores, dim=1, keepdim=True, correction=0)
    return (scores - mean) / deviation.clamp(min=1e-9)
