"""Chooses hard negatives for questions: candidates, filters, a seeded draw. It needs neither a model nor Ray.

The candidates of a question are the best passages of a dense model and of BM25, with the two rankings interleaved.
Each filter in the order of `Verdict` drops candidates. The negatives are drawn from the first ranks of the candidates
that are left.

The margin is relative to the gold's score, which NV-Retriever (de Souza P. Moreira et al. 2024) found best.

Shapes: Q questions (distinct wordings), K candidates of a ranking, M candidates and G golds of all questions. A
position is a passage's place in the corpus. A gold that the corpus lacks has a position behind the end of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from rqa_ray.corpus.near_duplicates import LIMIT, Signatures
from rqa_ray.corpus.topk import pair_scores
from rqa_ray.data.columns import concat, runs
from rqa_ray.data.distinct import first_places, places_of
from rqa_ray.data.golds import Golds

POOL = 4  # negatives are drawn from POOL times as many candidates
LEVEL_STEP, HIGHEST_LEVEL = 0.05, 1.5  # columns of the histogram
PAIRS_AT_ONCE = 1 << 14  # pairs that are scored together; they take 50 MB at 384 dimensions
QUESTIONS_AT_ONCE = 2_048  # questions whose candidates are filtered together


@dataclass(frozen=True)
class MiningRules:
    """The settings by which negatives are chosen."""

    num_negatives: int = 8  # largest number of negatives of a question
    margin: float = 0.95  # a candidate with at least this share of the lowest gold's score is a suspect
    depth: int = 100  # candidates of each ranking
    seed: int = 42
    round: int = 0

    def limits(self, lowest: np.ndarray) -> np.ndarray:
        """Returns (Q,) the scores at which a candidate becomes a suspect, from the lowest gold scores (Q,).

        The limit is below the gold's score, also if that score is negative.
        """
        lowest = lowest.astype(np.float64)
        return lowest - (1 - self.margin) * np.abs(lowest)


@dataclass
class Wordings:
    """The questions of all pairs of a question and a gold, each wording once, in the order of the input."""

    keys: np.ndarray  # (Q,) `schema.question_key`
    first: np.ndarray  # (Q,) the first pair with each question
    golds: Golds  # (Q,) golds of all pairs with the wording
    of_pairs: np.ndarray  # (N,) the question number of each pair
    gold_of_pairs: np.ndarray  # (N,) the place of each pair's gold in `golds.ids`

    @classmethod
    def of(cls, question_keys: np.ndarray, passage_ids: np.ndarray) -> Wordings:
        """Groups the pairs by the question keys (N,); passage_ids (N,) are their golds."""
        first = first_places(question_keys)
        keys, order = question_keys[first], np.argsort(question_keys[first])
        of_pairs = order[np.searchsorted(keys, question_keys, sorter=order)]
        golds = Golds.of(question_keys, passage_ids).select(first)  # by question, then by id
        places = np.unique(np.stack([of_pairs, passage_ids], axis=1), axis=0, return_inverse=True)[1]
        return cls(keys, first, golds, of_pairs, places.reshape(-1))


class Verdict(IntEnum):
    """The decision about a candidate; if several filters apply, the first one counts."""

    GOLD = 0  # it is a gold of the question, in some line of the input
    SAME_TEXT = 1  # it has the same text as a gold
    NEAR_DUPLICATE = 2  # it is nearly a gold
    SUSPECT = 3  # its score is too close to that of the lowest gold, and no person has said that it is no answer
    SPARE = 4  # it may be a negative, but was not drawn
    NEGATIVE = 5


@dataclass
class Candidates:
    """The candidates of all questions in one list: question i has those from offsets[i] to offsets[i + 1]."""

    positions: np.ndarray  # (M,)
    scores: np.ndarray  # (M,) fp32
    dense_ranks: np.ndarray  # (M,) ranks from 1; 0 if the dense model does not find the passage
    bm25_ranks: np.ndarray  # (M,) ranks from 1; 0 if BM25 does not find the passage
    offsets: np.ndarray  # (Q + 1,)

    @classmethod
    def united(cls, dense: tuple[np.ndarray, np.ndarray], bm25: tuple[np.ndarray, np.ndarray]) -> Candidates:
        """Interleaves two rankings by the better rank of each passage; of equal ranks, the dense one comes first.

        dense, bm25: positions (Q, K), best first, -1 where a ranking ends, and scores (Q, K) of the model that
        decides. K is 0 for a ranking that is not wanted.
        """
        width = max(dense[0].shape[1], bm25[0].shape[1])
        positions, scores = (
            np.stack([_padded(one, width), _padded(other, width)], axis=2).reshape(len(one), -1)
            for one, other in zip(dense, bm25, strict=True)
        )
        ranks = np.zeros((*positions.shape, 2), np.int32)
        for number in (0, 1):
            ranks[:, number::2, number] = np.arange(1, width + 1)
        order = positions.argsort(axis=1, kind="stable")
        ordered = np.take_along_axis(positions, order, axis=1)
        rows, twins = np.nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))
        first, second = order[rows, twins], order[rows, twins + 1]
        ranks[rows, first] += ranks[rows, second]
        kept = positions >= 0
        kept[rows, second] = False
        ranks = ranks[kept]
        return cls(positions[kept], scores[kept], ranks[:, 0], ranks[:, 1], _offsets(kept.sum(1)))

    @property
    def questions(self) -> np.ndarray:
        """The question (M,) of each candidate."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """Joins the candidates of several sets of questions."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        names = ("positions", "scores", "dense_ranks", "bm25_ranks")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**arrays, offsets=_offsets(counts))

    def where(self, kept: np.ndarray) -> Candidates:
        """Returns the candidates that a mask (M,) keeps."""
        counts = np.bincount(self.questions[kept], minlength=len(self.offsets) - 1)
        ranks = self.dense_ranks[kept], self.bm25_ranks[kept]
        return Candidates(self.positions[kept], self.scores[kept], *ranks, _offsets(counts))


@dataclass
class ScoredGolds:
    """The golds of all questions in one list: question i has those from offsets[i] to offsets[i + 1], at least one."""

    positions: np.ndarray  # (G,)
    scores: np.ndarray  # (G,) fp32
    offsets: np.ndarray  # (Q + 1,)

    def lowest(self) -> np.ndarray:
        """Returns the lowest score (Q,) of each question's golds."""
        return np.minimum.reduceat(self.scores, self.offsets[:-1]) if len(self.scores) else self.scores


class PairScores:
    """The scores of given pairs of a question and a passage, filled in while the corpus comes in blocks.

    scores: (N,) fp32 of the N pairs in the order given; -inf until the passage of the pair has come. They equal the
    scores of a search (`topk.py`) to the bit. States of several ranks can be merged.
    """

    def __init__(self, questions: np.ndarray, positions: np.ndarray) -> None:
        self._order = np.argsort(positions, kind="stable")
        self._questions, self._positions = questions[self._order], positions[self._order]
        self.scores = np.full(len(positions), -np.inf, np.float32)

    def add(self, question_embeddings: torch.Tensor, positions: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Scores the pairs whose passages are in a block with positions (B,) and embeddings (B, D).

        The embeddings of all questions are (Q, D).
        """
        places = positions.cpu().numpy()
        starts = np.searchsorted(self._positions, places)
        counts = np.searchsorted(self._positions, places, side="right") - starts
        pairs, columns = runs(starts, counts)[0], np.repeat(np.arange(len(places)), counts)
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            asked, rows = np.unique(self._questions[pairs[part]], return_inverse=True)
            pair = [torch.from_numpy(numbers).to(embeddings.device) for numbers in (rows, columns[part])]
            found = pair_scores(question_embeddings[torch.from_numpy(asked)].float(), embeddings.float(), *pair)
            self.scores[self._order[pairs[part]]] = found.cpu().numpy()

    def merge(self, scores: np.ndarray) -> None:
        """Merges the `scores` of another rank, which has seen other passages."""
        self.scores = np.maximum(self.scores, scores)


@dataclass
class Mined:
    """The decisions about all candidates."""

    candidates: Candidates
    verdicts: np.ndarray  # (M,) values of `Verdict`
    lowest: np.ndarray  # (Q,) score of the lowest gold

    def of(self, verdict: Verdict) -> Candidates:
        """Returns the candidates with a verdict."""
        return self.candidates.where(self.verdicts == verdict)

    def counts(self) -> dict[str, int]:
        """Returns the number of candidates by the name of their verdict."""
        return {verdict.name.lower(): int((self.verdicts == verdict).sum()) for verdict in Verdict}

    def levels(self, candidates: Candidates) -> np.ndarray:
        """Returns (M,) how close scores are to the lowest gold's score.

        The level is the ratio of the two scores if the gold's is positive, and always 1 if they are equal. From the
        level `MiningRules.margin`, a candidate is a suspect.
        """
        lowest = self.lowest.astype(np.float64)[candidates.questions]
        return 1 + (candidates.scores - lowest) / np.maximum(np.abs(lowest), 1e-9)

    def histogram(self) -> np.ndarray:
        """Counts by level the candidates that pass all filters except the margin: below 0, each LEVEL_STEP, above."""
        passed = self.candidates.where(self.verdicts >= Verdict.SUSPECT)
        edges = np.arange(round(HIGHEST_LEVEL / LEVEL_STEP) + 1) * LEVEL_STEP
        places = np.searchsorted(edges, self.levels(passed), side="right")
        return np.bincount(places, minlength=len(edges) + 1)


Refused = frozenset[tuple[int, int]]  # a question's key and the position of a passage that is no answer to it


def refused_at(refused: Iterable[tuple[int, int]], passage_ids: np.ndarray) -> Refused:
    """Returns `Labels.refused` with the positions of the passages, whose ids stand at all positions in an array."""
    pairs = list(refused)
    places = places_of(np.array([one for _, one in pairs], np.int64), passage_ids).tolist()
    return frozenset((key, place) for (key, _), place in zip(pairs, places, strict=True) if place >= 0)


def choose(
    rules: MiningRules,
    keys: np.ndarray,
    candidates: Candidates,
    golds: ScoredGolds,
    texts: Signatures,
    refused: Refused = frozenset(),
) -> Mined:
    """Filters the candidates of questions, and draws their negatives.

    keys: (Q,) `schema.question_key`, which seeds the draw. So a question has the same negatives whichever other
    questions are mined with it. texts: signatures of the texts at all positions. refused: these are no suspects.
    """
    lowest = golds.lowest()
    verdicts = np.full(len(candidates.positions), Verdict.SPARE, np.int8)
    for part in _slices(len(keys)):
        offsets = candidates.offsets[part.start : part.stop + 1]
        verdicts[offsets[0] : offsets[-1]] = _filtered(candidates, golds, texts, part)
    questions = candidates.questions
    close = candidates.scores >= rules.limits(lowest)[questions]
    suspects = np.flatnonzero(close & (verdicts == Verdict.SPARE))
    found = zip(keys[questions[suspects]].tolist(), candidates.positions[suspects].tolist(), strict=True)
    verdicts[suspects[[pair not in refused for pair in found]] if refused else suspects] = Verdict.SUSPECT
    verdicts[_drawn(rules, keys, candidates.offsets, verdicts)] = Verdict.NEGATIVE
    return Mined(candidates, verdicts, lowest)


def _filtered(candidates: Candidates, golds: ScoredGolds, texts: Signatures, part: slice) -> np.ndarray:
    """Compares the candidates of some questions with the golds, and returns their verdicts."""
    places = slice(candidates.offsets[part.start], candidates.offsets[part.stop])
    counts = np.diff(candidates.offsets)[part]
    num_golds = np.repeat(np.diff(golds.offsets)[part], counts)
    of_golds, _ = runs(np.repeat(golds.offsets[:-1][part], counts), num_golds)
    # number of the candidate in each pair of a candidate and a gold
    numbers = np.repeat(np.arange(len(num_golds)), num_golds)
    positions, gold_positions = candidates.positions[places][numbers], golds.positions[of_golds]
    verdicts = np.full(len(num_golds), Verdict.SPARE, np.int8)
    verdicts[numbers[texts.contained(gold_positions, positions) >= LIMIT]] = Verdict.NEAR_DUPLICATE
    verdicts[numbers[texts.exact[positions] == texts.exact[gold_positions]]] = Verdict.SAME_TEXT
    verdicts[numbers[positions == gold_positions]] = Verdict.GOLD  # set last, because this verdict counts most
    return verdicts


def _drawn(rules: MiningRules, keys: np.ndarray, offsets: np.ndarray, verdicts: np.ndarray) -> np.ndarray:
    """Returns the numbers of the candidates that are drawn as negatives."""
    drawn = []
    for key, start, stop in zip(keys.tolist(), offsets[:-1], offsets[1:], strict=True):
        pool = start + np.flatnonzero(verdicts[start:stop] == Verdict.SPARE)[: POOL * rules.num_negatives]
        generator = np.random.default_rng([rules.seed, rules.round, key % 2**64])
        drawn.append(pool[np.sort(generator.permutation(len(pool))[: rules.num_negatives])])
    return concat(drawn)


def _slices(num_questions: int) -> Iterator[slice]:
    for start in range(0, num_questions, QUESTIONS_AT_ONCE):
        yield slice(start, min(start + QUESTIONS_AT_ONCE, num_questions))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _padded(ranking: np.ndarray, width: int) -> np.ndarray:
    return np.pad(ranking, ((0, 0), (0, width - ranking.shape[1])), constant_values=-1)
