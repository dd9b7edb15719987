"""Finds candidates of hard negatives in one pass over the corpus, which all ranks share, and scores the candidates.

The model in training scores candidates and golds, or the hybrid of this model and BM25 (`--teacher hybrid`). The
weight of the hybrid is chosen on the eval questions, whose candidates the same pass finds.

Q questions (distinct wordings), P passages, E golds that the corpus lacks, K candidates of a ranking, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.hybrid_pairs import HybridWeight, PassageMoments, WordScores, ZScores, z_scores
from rqa_ray.corpus.mining import Candidates, Mined, MiningRules, PairScores, ScoredGolds, Wordings, choose, refused_at
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.corpus.topk import RunningTopK, search_block
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.distinct import places_of
from rqa_ray.evaluation.evaluator import TOP_K, RetrievalEvaluator, merge_topk
from rqa_ray.evaluation.hybrid_scores import merge_pairs
from rqa_ray.evaluation.hybrid_weight import weigh


class CorpusTexts(Protocol):
    """The texts of the P passages of a corpus: in this process, or in tasks on a cluster."""

    def signatures(self) -> Signatures:
        """Returns the (P,) signatures."""

    def rank(self, questions: Sequence[str], k: int) -> np.ndarray:
        """Does `Bm25.found`."""

    def word_scores(self, questions: Sequence[str], beside: Sequence[str]) -> WordScores:
        """Does `WordScores.of`."""


@dataclass(frozen=True)
class TextsHere:
    """The texts of a corpus, and BM25's index of them, in this process."""

    bm25: Bm25
    texts: Sequence[str]  # (P,)

    def signatures(self) -> Signatures:
        return Signatures.of(self.texts)

    def rank(self, questions: Sequence[str], k: int) -> np.ndarray:
        return self.bm25.found(questions, k)

    def word_scores(self, questions: Sequence[str], beside: Sequence[str]) -> WordScores:
        return WordScores.of(self.bm25, questions, beside)


@dataclass(frozen=True)
class HybridTexts:
    """Everything that the hybrid needs to know about texts. It is the same in every round."""

    asked: WordScores  # of the questions that are mined
    of_eval: WordScores  # of the eval questions, in the order of `rows.Questions`
    eval_bm25: np.ndarray  # positions, best first, for the eval questions; -1 after the last

    @classmethod
    def of(
        cls, corpus: CorpusTexts, questions: Sequence[str], beside: Sequence[str], of_eval: Sequence[str]
    ) -> HybridTexts:
        """Makes it for some questions and for the eval questions; `beside` are the texts of E golds."""
        words = corpus.word_scores(questions, beside), corpus.word_scores(of_eval, [])
        return cls(*words, corpus.rank(of_eval, TOP_K))


@dataclass(frozen=True)
class MiningTexts:
    """Everything that mining needs to know about texts. It is the same in every round."""

    wordings: Wordings
    missing: np.ndarray  # (E,) sorted ids of golds that the corpus lacks; their positions are P, P + 1 ...
    bm25: np.ndarray  # (Q, K) positions, best first, -1 after the last; K is 0 if BM25 gives no candidates
    signatures: Signatures  # (P + E,)
    hybrid: HybridTexts | None = None  # if the hybrid scores the candidates
    refused: frozenset[tuple[int, int]] = frozenset()  # `Labels.refused`

    @classmethod
    def of(
        cls,
        wordings: Wordings,
        passage_ids: np.ndarray,
        questions: Mapping[int, str],
        golds: Mapping[int, str],
        corpus: CorpusTexts,
        depth: int,
        of_eval: Sequence[str] | None,
    ) -> MiningTexts:
        """Makes it from the ids (P,) of the corpus, and from texts: of questions by key, and of golds by id.

        `depth` is the number of BM25's candidates for each question; 0 for none. `of_eval` are the eval questions if
        the hybrid scores the candidates.
        """
        missing = np.setdiff1d(wordings.golds.ids, passage_ids)
        asked, beside = [questions[key] for key in wordings.keys.tolist()], [golds[id] for id in missing.tolist()]
        bm25 = corpus.rank(asked, depth) if depth else np.zeros((len(asked), 0), np.int64)
        hybrid = None if of_eval is None else HybridTexts.of(corpus, asked, beside, of_eval)
        return cls(wordings, missing, bm25, Signatures.join([corpus.signatures(), Signatures.of(beside)]), hybrid)

    def of_pairs(self, pairs: np.ndarray, passage_ids: np.ndarray) -> MiningTexts:
        """Returns the same for some pairs (n,) alone, whose golds are passage_ids (n,); they are numbered anew."""
        asked = self.wordings.of_pairs[pairs]
        wordings = Wordings.of(self.wordings.keys[asked], passage_ids)
        first = asked[wordings.first]
        hybrid = self.hybrid and replace(self.hybrid, asked=self.hybrid.asked.select(first))
        return replace(self, wordings=wordings, bm25=self.bm25[first], hybrid=hybrid)


class Choice(NamedTuple):
    """What a pass has found for all questions."""

    mined: Mined
    golds: ScoredGolds
    weight: HybridWeight | None  # None if the model alone has scored


class MiningPass:
    """Finds the candidates of all questions, and their scores, in one pass over the corpus."""

    def __init__(
        self,
        texts: MiningTexts,
        batches: GlobalBatches,
        evaluator: RetrievalEvaluator,
        depth: int,
        number: int,
        step: int,
    ) -> None:
        """Prepares the pass for the round `number`, with the model of a step.

        `depth` is the number of candidates of the dense ranking; 0 for none.
        """
        self.number, self.step, self.began = number, step, time.monotonic()
        self.texts, self.batches, self.evaluator = texts, batches, evaluator
        corpus, golds = evaluator.corpus, texts.wordings.golds
        ids = np.concatenate([corpus.passage_ids, texts.missing])
        places = places_of(golds.ids, ids)
        self.refused = refused_at(texts.refused, ids)
        device = evaluator.device
        self.asked = _Search(texts.bm25, places, golds.offsets, min(depth, len(corpus)), device)
        self.of_eval: _Search | None = None
        self.moments: PassageMoments | None = None
        if texts.hybrid:
            bm25 = texts.hybrid.eval_bm25
            none = np.zeros(0, np.int64), np.zeros(len(bm25) + 1, np.int64)  # the golds are known by id
            self.of_eval = _Search(bm25, *none, min(TOP_K, len(corpus)), device)

    def begin(self) -> None:
        """Embeds the questions, and the golds that the corpus lacks."""
        wordings, missing = self.texts.wordings, self.texts.missing
        embedded = np.zeros(len(missing), bool)
        questions = torch.empty(0)
        of_missing = torch.empty(0)
        for rows in self.batches.rows.parts():
            asked = wordings.of_pairs[rows.pairs]
            first = np.flatnonzero(wordings.first[asked] == rows.pairs)
            golds = np.flatnonzero(np.isin(rows.passage_ids, missing[~embedded]))
            numbers, places = np.unique(np.searchsorted(missing, rows.passage_ids[golds]), return_index=True)
            texts = [rows.questions[row] for row in first.tolist()]
            texts += [rows.passages[row] for row in golds[places].tolist()]
            if not texts:
                continue
            found = self.evaluator.embed(texts)
            if not len(questions):
                questions = found.new_empty(len(wordings.keys), found.shape[1])
                of_missing = found.new_empty(len(missing), found.shape[1])
            questions[asked[first]], of_missing[numbers] = found.split([len(first), len(numbers)])
            embedded[numbers] = True
        self.asked.questions = questions
        behind = torch.arange(len(missing)) + len(self.evaluator.corpus)
        self.asked.pairs.add(questions, behind, of_missing)
        if self.of_eval:
            self.of_eval.questions = self.evaluator.embed([*self.evaluator.questions["eval"].tokens])
            self.moments = PassageMoments(questions.shape[1], questions.device)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        self.asked.add(passages, positions)
        if self.of_eval and self.moments:
            self.of_eval.add(passages, positions)
            self.moments.add(passages)

    def end(self) -> None:
        self.asked.end()
        if self.of_eval and self.moments:
            self.of_eval.end()
            self.moments.merge_ranks()

    def choose(self, rules: MiningRules) -> Choice:
        """Chooses negatives from the candidates of all questions."""
        candidates, golds = self.asked.found()
        weight, hybrid = None, self.texts.hybrid
        if hybrid and self.of_eval:
            other, _ = self.of_eval.found()
            found = self._z_scores(self.of_eval, hybrid.of_eval, other.questions, other)
            eval_golds = self.evaluator.questions["eval"].golds
            weight = weigh(other, found, eval_golds, self.evaluator.corpus.passage_ids)
            asked = np.repeat(np.arange(len(golds.offsets) - 1), np.diff(golds.offsets))
            candidates.scores, golds.scores = (
                self._z_scores(self.asked, hybrid.asked, rows, part).mixed(weight.weight)
                for rows, part in ((candidates.questions, candidates), (asked, golds))
            )
        given = self.texts.wordings.keys, candidates, golds, self.texts.signatures, self.refused
        return Choice(choose(rules, *given), golds, weight)

    def _z_scores(
        self, search: _Search, words: WordScores, rows: np.ndarray, part: Candidates | ScoredGolds
    ) -> ZScores:
        """Returns the z-scores of passages for the questions `rows`, from the model's scores."""
        assert self.moments
        means, deviations = self.moments.of_questions(search.questions)
        return ZScores(z_scores(part.scores, means[rows], deviations[rows]), words.z_scores(rows, part.positions))


class _Search:
    """The candidates and golds of some questions, found and scored by the model while the corpus comes in blocks."""

    def __init__(
        self, bm25: np.ndarray, gold_positions: np.ndarray, offsets: np.ndarray, depth: int, device: torch.device
    ) -> None:
        """Takes BM25's ranking, the positions of the golds, and the place of each question's first gold in them."""
        self.bm25, self.gold_positions, self.offsets = bm25, gold_positions, offsets
        self.is_named = bm25 >= 0
        of_golds = np.repeat(np.arange(len(bm25)), np.diff(offsets))
        asked = np.concatenate([of_golds, np.nonzero(self.is_named)[0]])
        self.pairs = PairScores(asked, np.concatenate([gold_positions, bm25[self.is_named]]))
        self.topk = RunningTopK(len(bm25), depth, device)
        self.questions = torch.empty(0)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        if self.topk.k:
            search_block(self.questions, passages, positions, self.topk)
        self.pairs.add(self.questions, positions, passages)

    def end(self) -> None:
        merge_topk(self.topk)
        merge_pairs(self.pairs, self.topk.keys.device)

    def found(self) -> tuple[Candidates, ScoredGolds]:
        """Returns candidates and golds with the model's scores."""
        scores, positions = (part.cpu().numpy() for part in self.topk.result())
        of_golds, of_bm25 = np.split(self.pairs.scores, [len(self.gold_positions)])
        lexical = np.full(self.is_named.shape, -np.inf, np.float32)
        lexical[self.is_named] = of_bm25
        candidates = Candidates.united((positions, scores), (self.bm25, lexical))
        return candidates, ScoredGolds(self.gold_positions, of_golds, self.offsets)
