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
class AskedWords:
    """The words of Q questions, and the mean and the deviation of their scores by BM25 over the whole corpus."""

    words: np.ndarray  # the words of all questions by number, a word that a question repeats too
    offsets: np.ndarray  # (Q + 1,): question i has the words from offsets[i] to offsets[i + 1]
    means: np.ndarray  # (Q,) of the scores of a question with all P passages
    deviations: np.ndarray  # (Q,)

    @classmethod
    def of(cls, bm25: Bm25, questions: Sequence[str]) -> AskedWords:
        """Looks the words up in an index."""
        words = [np.array(bm25.word_numbers(row), np.int64) for row in bm25.words(questions)]
        moments = [torch.zeros(2, 0)]
        for part in question_slices(len(questions), bm25.num_passages):
            moments.append(torch.stack(torch.std_mean(bm25.scores(questions[part]), dim=1, correction=0)))
        deviations, means = torch.cat(moments, dim=1).numpy()
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in words])]).astype(np.int64)
        return cls(concat(words), offsets, means, deviations)

    @classmethod
    def join(cls, parts: Sequence[AskedWords]) -> AskedWords:
        """Joins the words of several sets of questions."""
        offsets = np.concatenate([[0], np.cumsum(concat([np.diff(part.offsets) for part in parts]))])
        words, means, deviations = (
            concat([getattr(part, name) for part in parts]) for name in ("words", "means", "deviations")
        )
        return cls(words, offsets, means, deviations)

    def select(self, questions: np.ndarray) -> AskedWords:
        """Returns the words of some questions."""
        places, offsets = runs(self.offsets[questions], np.diff(self.offsets)[questions])
        return AskedWords(self.words[places], offsets, self.means[questions], self.deviations[questions])


@dataclass(frozen=True)
class WordScores:
    """BM25's scores of some questions with any passage.

    Memory: 12 bytes for each passage that has a word of the questions, word by word. That is at most 1.5 times the
    index, however many questions there are. The arrays can be shared.
    """

    asked: AskedWords
    keys: np.ndarray  # int64, ascending: word * span + position
    scores: np.ndarray  # fp32, the part of a passage's score that comes from one word
    span: int  # P + E: texts beside the corpus have the positions behind its end

    @classmethod
    def of(cls, bm25: Bm25, questions: Sequence[str], beside: Sequence[str] = ()) -> WordScores:
        """Makes them from an index; the texts `beside` the corpus are scored as if the corpus had them."""
        return cls.of_words(bm25, AskedWords.of(bm25, questions), beside)

    @classmethod
    def of_words(cls, bm25: Bm25, asked: AskedWords, beside: Sequence[str] = ()) -> WordScores:
        """Does `of` for questions whose words are looked up already."""
        distinct = np.unique(asked.words)
        positions, scores, counts = bm25.postings(distinct)
        span, known = bm25.num_passages + len(beside), set(distinct.tolist())
        keys = [np.repeat(distinct, counts) * span + positions]
        parts = [scores]
        for place, text in enumerate(bm25.words(beside), start=bm25.num_passages):
            found = Counter(bm25.word_numbers(text))
            own = np.array([word for word in found if word in known], np.int64)
            keys.append(own * span + place)
            parts.append(bm25.parts_of(own, np.array([found[word] for word in own.tolist()]), len(text)))
        order = np.argsort(concat(keys))
        return cls(asked, concat(keys)[order], concat(parts)[order], span)

    def select(self, questions: np.ndarray) -> WordScores:
        """Returns the scores of some questions alone."""
        return replace(self, asked=self.asked.select(questions))

    def of_pairs(self, questions: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns (N,) fp32 scores of questions (N,) with passages at positions (N,), equal to `Bm25.scores`."""
        offsets = self.asked.offsets
        counts = np.diff(offsets)[questions]
        words = self.asked.words[runs(offsets[questions], counts)[0]]
        pairs = np.repeat(np.arange(len(questions)), counts)
        wanted = words * self.span + positions[pairs]
        places = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        is_there = self.keys[places] == wanted if len(self.keys) else np.zeros(len(wanted), bool)
        found = np.zeros(len(questions), np.float32)
        np.add.at(found, pairs[is_there], self.scores[places[is_there]])  # in the order of the words, as bm25s adds
        return found

    def z_scores(self, questions: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns (N,) z-scores of pairs over the whole corpus."""
        found = self.of_pairs(questions, positions)
        return z_scores(found, self.asked.means[questions], self.asked.deviations[questions])


def word_z_scores(
    bm25: Bm25, questions: Sequence[str], beside: Sequence[str], rows: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Returns what `WordScores.z_scores` returns for pairs, a few questions at a time.

    So memory holds the words of these few questions. A text `beside` the corpus is read for the pairs that have it.
    """
    found = np.zeros(len(rows))
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    for part in question_slices(len(questions), bm25.num_passages):
        pairs = order[slice(*np.searchsorted(ordered, [part.start, part.stop]))]
        places = positions[pairs]
        is_beside = places >= bm25.num_passages
        needed, again = np.unique(places[is_beside] - bm25.num_passages, return_inverse=True)
        places[is_beside] = bm25.num_passages + again
        scores = WordScores.of(bm25, questions[part], [beside[number] for number in needed.tolist()])
        found[pairs] = scores.z_scores(rows[pairs] - part.start, places)
    return found


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
