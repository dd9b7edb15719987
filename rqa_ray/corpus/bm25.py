"""BM25 (with bm25s) and its fusion with embeddings; both hold the whole corpus in the memory of one process.

The fusion adds two scores with a weight. The scores are first made comparable by z-scores over the whole corpus,
question by question.

Shapes: q questions of a slice, P passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rqa_ray.corpus.topk import RunningTopK, question_slices
from rqa_ray.data.columns import runs
from rqa_ray.places import read_json

SMALLEST_DEVIATION = 1e-9  # of scores; the z-scores of scores that are all alike are 0
HYBRID_FILE = "hybrid.json"  # in the folder of a model: the weight of its hybrid with BM25, and its metrics


@dataclass(frozen=True)
class Weight:
    """The weight of the embeddings' z-scores in a hybrid; the z-scores of BM25 have the rest."""

    value: float
    origin: str  # who chose the weight, in words

    @classmethod
    def of(cls, given: float | None, model_folder: str) -> Weight | None:
        """Returns the weight that the user gives, else the weight in the model's folder, else None."""
        if given is not None:
            return cls(given, "as --hybrid_weight says")
        stored = (read_json(Path(model_folder) / HYBRID_FILE) or {}).get("weight")
        return cls(float(stored), "the weight stored with the model") if isinstance(stored, (int, float)) else None

    def describe(self) -> str:
        """Returns a line for the user."""
        parts = f"{self.value:g} of the embeddings' z-scores and {1 - self.value:g} of BM25's"
        return f"hybrid: {parts}, {self.origin}"


class Bm25:
    """BM25 with the defaults of bm25s: Lucene's variant, k1 1.5, b 0.75, without English stop words."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        tokens = bm25s.tokenize(texts, show_progress=False)
        self.has_words = any(map(len, tokens.ids))
        self._postings: dict[str, np.ndarray] = {"indptr": np.zeros(1), "indices": np.zeros(0), "data": np.zeros(0)}
        if self.has_words:  # bm25s cannot index a corpus without words
            self._index.index(tokens, show_progress=False)
            self._postings = self._index.scores
        self._mean_length = float(np.mean([len(row) for row in tokens.ids])) if self.has_words else 1.0
        self.num_passages = len(texts)

    def scores(self, questions: Sequence[str]) -> torch.Tensor:
        """Returns (q, P) fp32 scores."""
        blank = np.zeros(self.num_passages, np.float32)  # the scores of a question without words
        words = self.words(questions)
        return torch.from_numpy(np.stack([self._index.get_scores(row) if row else blank for row in words]))

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the words of texts, without stop words; none if no passage of the corpus has a word."""
        if not self.has_words:
            return [[] for _ in texts]
        return self._tokenize(list(texts), return_ids=False, show_progress=False) if len(texts) else []

    def word_numbers(self, words: list[str]) -> list[int]:
        """Returns the numbers of those words that the corpus has."""
        return self._index.get_tokens_ids(words) if words else []

    def postings(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns of words (W,), word after word, the positions of the passages that have the word.

        The other results are the fp32 scores of the word in these passages, and how many passages each word has (W,).
        """
        starts = self._postings["indptr"].astype(np.int64)
        counts = starts[numbers + 1] - starts[numbers]
        places, _ = runs(starts[numbers], counts)
        return self._postings["indices"][places].astype(np.int64), self._postings["data"][places], counts

    def parts_of(self, numbers: np.ndarray, counts: np.ndarray, length: int) -> np.ndarray:
        """Returns (W,) fp32 scores of words that a text beside the corpus has `counts` (W,) times, of `length` words.

        Lucene's formula, with the frequencies and the mean length of the corpus.
        """
        starts = self._postings["indptr"].astype(np.int64)
        with_word = starts[numbers + 1] - starts[numbers]
        idf = np.log(1 + (self.num_passages - with_word + 0.5) / (with_word + 0.5))
        k1, b = self._index.k1, self._index.b
        norm = k1 * (1 - b + b * length / self._mean_length)
        return (idf * counts / (norm + counts)).astype(np.float32)

    def rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and positions (Q, k), best first."""
        topk = RunningTopK(len(questions), min(k, self.num_passages))
        for part in question_slices(len(questions), self.num_passages):
            topk.add(self.scores(questions[part]), torch.arange(self.num_passages), part.start)
        scores, positions = topk.result()
        return scores.numpy(), positions.numpy()

    def found(self, questions: Sequence[str], k: int) -> np.ndarray:
        """Returns positions (Q, k), best first, -1 where no further passage has a word of the question."""
        scores, positions = self.rank(questions, k)
        return np.where(scores > 0, positions, -1)


class Hybrid:
    """The fusion of BM25 and embeddings of the same passages."""

    def __init__(self, bm25: Bm25, passages: torch.Tensor) -> None:
        """Takes embeddings (P, D) of the passages in document order."""
        self.bm25, self.passages = bm25, passages

    def rank(
        self, questions: Sequence[str], embeddings: torch.Tensor, weights: Sequence[float], k: int
    ) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """Returns scores and positions (Q, k), best first.

        `weight` is the share of the embeddings' z-scores, the rest is BM25's.
        """
        number = self.bm25.num_passages
        best = {weight: RunningTopK(len(questions), min(k, number)) for weight in weights}
        for part in question_slices(len(questions), number):
            dense = z_scores(embeddings[part] @ self.passages.T)
            lexical = z_scores(self.bm25.scores(questions[part]))
            for weight, topk in best.items():
                topk.add(weight * dense + (1 - weight) * lexical, torch.arange(number), part.start)
        results = {weight: topk.result() for weight, topk in best.items()}
        return {weight: (scores.numpy(), positions.numpy()) for weight, (scores, positions) in results.items()}


def z_scores(scores: torch.Tensor) -> torch.Tensor:
    """Returns scores (q, P) minus their mean, divided by their standard deviation, question by question."""
    deviation, mean = torch.std_mean(scores, dim=1, keepdim=True, correction=0)
    return (scores - mean) / deviation.clamp(min=SMALLEST_DEVIATION)
