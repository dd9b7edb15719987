"""Makes what mining needs of the texts of a corpus, on a cluster: signatures for near-duplicates, BM25's rankings.

Neither depends on a model, so every round of mining uses the same.

Shapes: Q questions, K passages kept per question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import ray

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus import hybrid_pairs
from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.hybrid_pairs import AskedWords, WordScores
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.corpus.shards import EmbeddingFolder

Texts = Callable[[], Iterable[str]]  # a function that a task calls


def saved_texts(location: str, shards: Sequence[str]) -> Iterable[str]:
    """Returns the texts of some shards of saved embeddings."""
    return EmbeddingFolder(location).texts(shards)


def signatures(parts: Sequence[Texts], beside: Sequence[str] = ()) -> Signatures:
    """Returns the signatures of the texts of all parts, and then of the texts `beside`; each part is a task."""
    return Signatures.join([*ray.get([_signatures.remote(part) for part in parts]), Signatures.of(beside)])


@ray.remote
def _signatures(texts: Texts) -> Signatures:
    return Signatures.of(texts())


def build_bm25(texts: Texts) -> ray.ObjectRef:
    """Returns a `Bm25` of the texts, made by a task; the workers of a node share its memory."""
    return _build_bm25.remote(texts)


@ray.remote
def _build_bm25(texts: Texts) -> Bm25:
    return Bm25(list(texts()))


def bm25_rankings(index: ray.ObjectRef, questions: Sequence[str], k: int, workers: Workers) -> np.ndarray:
    """Returns positions (Q, K), best first, -1 where no further passage has a word of the question."""
    return np.concatenate(ray.get([_rank.remote(index, part, k) for part in _shares(questions, workers)]))


def word_scores(index: ray.ObjectRef, questions: Sequence[str], beside: Sequence[str], workers: Workers) -> WordScores:
    """Returns BM25's scores of questions with the passages and the texts `beside` them.

    One task makes the scores: parts from several tasks would repeat the passages of words that many questions have.
    """
    parts = [_asked_words.remote(index, part) for part in _shares(questions, workers)]
    return ray.get(_word_scores.remote(index, AskedWords.join(ray.get(parts)), beside))


def word_z_scores(
    index: ray.ObjectRef,
    questions: Sequence[str],
    beside: Sequence[str],
    rows: np.ndarray,
    positions: np.ndarray,
    workers: Workers,
) -> np.ndarray:
    """Returns BM25's z-scores (N,) of the questions `rows` (N,) with the passages at positions (N,)."""
    found, pairs, tasks, start, texts = np.zeros(len(rows)), [], [], 0, ray.put(beside)
    for part in _shares(questions, workers):
        pairs.append(np.flatnonzero((rows >= start) & (rows < start + len(part))))
        tasks.append(_word_z_scores.remote(index, part, texts, rows[pairs[-1]] - start, positions[pairs[-1]]))
        start += len(part)
    for own, scores in zip(pairs, ray.get(tasks), strict=True):
        found[own] = scores
    return found


def _shares(questions: Sequence[str], workers: Workers) -> list[Sequence[str]]:
    """Cuts questions into a share for each CPU of the workers."""
    number = min(workers.num_workers * workers.cpus, len(questions))
    cuts = [len(questions) * part // number for part in range(number + 1)]
    return [questions[start:stop] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]


@ray.remote
def _asked_words(index: Bm25, questions: list[str]) -> AskedWords:
    return AskedWords.of(index, questions)


@ray.remote
def _word_scores(index: Bm25, asked: AskedWords, beside: list[str]) -> WordScores:
    return WordScores.of_words(index, asked, beside)


@ray.remote
def _word_z_scores(
    index: Bm25, questions: list[str], beside: list[str], rows: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    return hybrid_pairs.word_z_scores(index, questions, beside, rows, positions)


@ray.remote
def _rank(index: Bm25, questions: list[str], k: int) -> np.ndarray:
    return index.found(questions, k)
