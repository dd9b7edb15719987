"""Scores single pairs of a question and a passage by the hybrid of `bm25.py`, without the scores of all pairs.

The hybrid adds z-scores over the whole corpus. Of BM25, `WordScores` keeps what the words of some questions need. Of
embeddings, the mean and the deviation of a question's scores follow from the mean and the covariance of the passages.

Shapes: Q questions, P passages, E texts beside the corpus, N pairs, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rqa_ray.corpus.bm25 import SMALLEST_DEVIATION, Bm25
from rqa_ray.corpus.topk import question_slices
from rqa_ray.data.columns import concat, runs
from rqa_ray.retriever import distributed


@dataclass(frozen=True)
class WordScores:
    """BM25's scores of some questions with any passage.

    Memory: 12 bytes for each passage that has a word of the questions, word by word. The arrays can be shared.
    """

    words: np.ndarray  # the words of all questions by number, a word that a question repeats too
    offsets: np.ndarray  # (Q + 1,): question i has the words from offsets[i] to offsets[i + 1]
    keys: np.ndarray  # int64, ascending: word * span + position
    scores: np.ndarray  # fp32, the part of a passage's score that comes from one word
    span: int  # P + E: texts beside the corpus have the positions behind its end
    means: np.ndarray  # (Q,) of the scores of a question with all P passages
    deviations: np.ndarray  # (Q,)

    @classmethod
    def of(cls, bm25: Bm25, questions: Sequence[str], beside: Sequence[str] = ()) -> WordScores:
        """Makes them from an index; the texts `beside` the corpus are scored as if the corpus had them."""
        words = [np.array(bm25.word_numbers(row), np.int64) for row in bm25.words(questions)]
        distinct = np.unique(concat(words))
        positions, scores, counts = bm25.postings(distinct)
        span, known = bm25.num_passages + len(beside), set(distinct.tolist())
        keys = [np.repeat(distinct, counts) * span + positions]
        parts = [scores]
        for place, text in enumerate(bm25.words(beside), start=bm25.num_passages):
            found = Counter(bm25.word_numbers(text))
            asked = np.array([word for word in found if word in known], np.int64)
            keys.append(asked * span + place)
            parts.append(bm25.parts_of(asked, np.array([found[word] for word in asked.tolist()]), len(text)))
        moments = [torch.zeros(2, 0)]
        for part in question_slices(len(questions), bm25.num_passages):
            moments.append(torch.stack(torch.std_mean(bm25.scores(questions[part]), dim=1, correction=0)))
        deviations, means = torch.cat(moments, dim=1).numpy()
        order = np.argsort(concat(keys))
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in words])]).astype(np.int64)
        return cls(concat(words), offsets, concat(keys)[order], concat(parts)[order], span, means, deviations)

    @classmethod
    def join(cls, parts: Sequence[WordScores]) -> WordScores:
        """Joins the scores of several sets of questions with one corpus."""
        keys, first = np.unique(concat([part.keys for part in parts]), return_index=True)
        counts = concat([np.diff(part.offsets) for part in parts])
        words, scores, means, deviations = (
            concat([getattr(part, name) for part in parts]) for name in ("words", "scores", "means", "deviations")
        )
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return cls(words, offsets, keys, scores[first], parts[0].span, means, deviations)

    def select(self, questions: np.ndarray) -> WordScores:
        """Returns the scores of some questions alone."""
        places, offsets = runs(self.offsets[questions], np.diff(self.offsets)[questions])
        means, deviations = self.means[questions], self.deviations[questions]
        return replace(self, words=self.words[places], offsets=offsets, means=means, deviations=deviations)

    def of_pairs(self, questions: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns (N,) fp32 scores of questions (N,) with passages at positions (N,), equal to `Bm25.scores`."""
        counts = np.diff(self.offsets)[questions]
        words = self.words[runs(self.offsets[questions], counts)[0]]
        pairs = np.repeat(np.arange(len(questions)), counts)
        wanted = words * self.span + positions[pairs]
        places = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        is_there = self.keys[places] == wanted if len(self.keys) else np.zeros(len(wanted), bool)
        found = np.zeros(len(questions), np.float32)
        np.add.at(found, pairs[is_there], self.scores[places[is_there]])  # in the order of the words, as bm25s adds
        return found

    def z_scores(self, questions: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns (N,) z-scores of pairs over the whole corpus."""
        return z_scores(self.of_pairs(questions, positions), self.means[questions], self.deviations[questions])


class PassageMoments:
    """The first two moments of the embeddings of a corpus that comes in blocks; moments of several ranks add up."""

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        # of the embeddings with a 1 at their end, so that the last row has the sums and the count
        self.products = torch.zeros(dimensions + 1, dimensions + 1, dtype=torch.float64, device=device)

    def add(self, passages: torch.Tensor) -> None:
        """Adds a block of passages (B, D)."""
        longer = torch.nn.functional.pad(passages.double(), (0, 1), value=1.0)
        self.products += longer.T @ longer

    def merge_ranks(self) -> None:
        """Adds up what all ranks have seen, in the order of ranks, so that all ranks end with the same bits."""
        parts = distributed.gather(self.products)
        self.products = parts.view(-1, *self.products.shape).sum(0)

    def of_questions(self, questions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns means (Q,) and deviations (Q,) of the scores of questions (Q, D) with all passages."""
        shares = self.products.cpu() / self.products[-1, -1].cpu()
        mean, asked = shares[-1, :-1], questions.double().cpu()
        covariance = shares[:-1, :-1] - mean[:, None] * mean
        return (asked @ mean).numpy(), ((asked @ covariance) * asked).sum(1).clamp(min=0).sqrt().numpy()


def z_scores(scores: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Returns scores (N,) in deviations above the mean."""
    return (scores.astype(np.float64) - means) / np.maximum(deviations, SMALLEST_DEVIATION)


@dataclass(frozen=True)
class ZScores:
    """The z-scores of N pairs by both rankers of a hybrid."""

    dense: np.ndarray  # (N,)
    lexical: np.ndarray  # (N,)

    def mixed(self, weight: float) -> np.ndarray:
        """Returns the hybrid's scores (N,) fp32; `weight` is the share of the embeddings, the rest is BM25's."""
        return (weight * self.dense + (1 - weight) * self.lexical).astype(np.float32)


@dataclass(frozen=True)
class HybridWeight:
    """The weight of the model in a hybrid, and nDCG@10 on the questions that chose the weight."""

    weight: float
    together: float
    model: float  # the model alone
    bm25: float  # BM25 alone

    def describe(self) -> str:
        """Returns the words for the user."""
        return (
            f"{self.weight:g} of the model's z-scores and {round(1 - self.weight, 2):g} of BM25's (nDCG@10 on eval "
            f"{self.together:.3f}; the model alone {self.model:.3f}, BM25 alone {self.bm25:.3f})"
        )
