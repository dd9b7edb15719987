"""Mines hard negatives with the model in training, round by round, on all ranks together.

A round needs the embeddings of the whole corpus. If an evaluation is due at the same step, both use one encoding. Each
rank searches its share of the corpus, the results of all ranks are merged, and every rank chooses the same negatives
from them by the rules of `corpus/mining.py`. Round 1 is mined with the pretrained model, before the first step; the
hard negatives of the training files are round 0.

Q questions (distinct wordings), P passages, E golds that the corpus lacks, K candidates of a ranking, N pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rqa_ray.corpus.mining import Candidates, Mined, MiningRules, PairScores, ScoredGolds, Verdict, Wordings, choose
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.corpus.topk import RunningTopK, search_block
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.columns import runs
from rqa_ray.data.passages import Negatives, PassageTable
from rqa_ray.errors import InputError
from rqa_ray.evaluation.evaluator import RetrievalEvaluator, merge_topk, positions_of
from rqa_ray.evaluation.metrics import greater_is_better
from rqa_ray.retriever import distributed
from rqa_ray.settings import MINED_FROM, TrainSettings
from rqa_ray.texts import duration
from rqa_ray.training.schedule import rounds_due

NEGATIVES_FILE = "negatives.npz"


@dataclass(frozen=True)
class MiningTexts:
    """Everything that mining needs to know about texts. It is the same in every round."""

    wordings: Wordings
    missing: np.ndarray  # (E,) sorted ids of golds that the corpus lacks; their positions are P, P + 1 ...
    bm25: np.ndarray  # (Q, K) positions, best first, -1 after the last; K is 0 if BM25 gives no candidates
    signatures: Signatures  # (P + E,)

    def of_pairs(self, pairs: np.ndarray, passage_ids: np.ndarray) -> MiningTexts:
        """Returns the same for some pairs (n,) alone, whose golds are passage_ids (n,); they are numbered anew."""
        asked = self.wordings.of_pairs[pairs]
        wordings = Wordings.of(self.wordings.keys[asked], passage_ids)
        return replace(self, wordings=wordings, bm25=self.bm25[asked[wordings.first]])


@dataclass(frozen=True)
class Round:
    """The hard negatives of one round: those of question i are offsets[i] to offsets[i + 1]."""

    number: int
    ids: np.ndarray  # passage ids
    scores: np.ndarray  # scores of the model that mined the round
    offsets: np.ndarray  # (Q + 1,)
    quality: float  # metric of that model on the eval questions; NaN if it was not evaluated

    @classmethod
    def of(cls, mined: Mined, passage_ids: np.ndarray, number: int, quality: float) -> Round:
        """Returns the round of the negatives that were drawn; `passage_ids` (P,) are in corpus order."""
        drawn = mined.of(Verdict.NEGATIVE)
        return cls(number, passage_ids[drawn.positions], drawn.scores, drawn.offsets, quality)

    def negatives(self, table: PassageTable, of_pairs: np.ndarray) -> Negatives:
        """Returns the negatives of all pairs; `of_pairs` (N,) are the numbers of their questions."""
        places, offsets = runs(self.offsets[of_pairs], np.diff(self.offsets)[of_pairs])
        return Negatives.of(table, self.ids[places], offsets, round=self.number)


class Rounds:
    """Keeps the round whose hard negatives are in use, and knows when the next round is due."""

    def __init__(
        self,
        settings: TrainSettings,
        texts: MiningTexts,
        batches: GlobalBatches,
        evaluator: RetrievalEvaluator,
        metric: str,
    ) -> None:
        """Takes the name of the `metric` by which the models of two rounds are compared."""
        self.settings, self.texts, self.batches, self.evaluator = settings, texts, batches, evaluator
        self.metric, self.table = metric, evaluator.corpus.table
        self.rules = MiningRules(settings.mine_negatives, settings.mine_margin, settings.mine_depth, batches.seed)
        self.tell: Callable[[str], None] = lambda line: None
        self.done = 0  # number of the last round that was mined or left out
        self.round: Round | None = None  # the round in use

    def start(self, step: int, max_steps: int, quality: float = math.nan) -> MiningPass | None:
        """Returns a pass that mines with the model of this step, or None if no round is due, or the model got worse.

        `quality` is the model's metric. NaN if the step is not evaluated, or in the same pass.
        """
        number = rounds_due(step, max_steps, self.settings.mine_every)
        return None if number <= self.done or self._keeps(number, step, quality) else MiningPass(self, number, step)

    def finish(self, found: MiningPass, quality: float) -> None:
        """Chooses negatives from what a pass has found and uses them from now on, unless the model got worse."""
        number, step = found.number, found.step
        if self._keeps(number, step, quality):
            return
        mined = found.choose(replace(self.rules, round=number))
        self.done = number
        self._use(Round.of(mined, self.evaluator.corpus.passage_ids, number, quality))
        counts, seconds = mined.counts(), time.monotonic() - found.began
        self.tell(
            f"mined round {number} at step {step}: {len(mined.lowest):,} questions, {counts['negative']:,} negatives, "
            f"{counts['suspect']:,} suspects left out; {duration(seconds)}"
        )
        if not counts["negative"]:
            self.tell(
                f"warning: no hard negative is left at --mine_margin {self.rules.margin:g}; a higher one leaves some"
            )

    def _keeps(self, number: int, step: int, quality: float) -> bool:
        """Returns whether this model is worse than the model of the round in use, which then stays; tells so."""
        before = self.round.quality if self.round else math.nan
        is_worse = quality < before if greater_is_better(self.metric) else quality > before
        if self.round and is_worse:
            self.done = number
            name = self.metric.rpartition("/")[2]
            self.tell(
                f"mined nothing at step {step}: {name} is {quality:.3f}, and was {before:.3f} when round "
                f"{self.round.number} was mined, which stays"
            )
        return is_worse

    def save(self, folder: Path) -> None:
        """Writes the round in use into a checkpoint folder."""
        if self.round:
            np.savez(folder / NEGATIVES_FILE, done=self.done, **vars(self.round))

    def load(self, folder: Path) -> None:
        """Uses the round of a checkpoint folder. If it has none, a round is due before the next batch.

        Raises:
            InputError: the round belongs to other questions or passages.
        """
        if not (folder / NEGATIVES_FILE).exists():
            return
        with np.load(folder / NEGATIVES_FILE) as kept:
            values = dict(kept)
        self.done = int(values.pop("done"))
        kept_round = Round(int(values.pop("number")), quality=float(values.pop("quality")), **values)
        known = np.isin(kept_round.ids, self.table.ids).all()
        if len(kept_round.offsets) != len(self.texts.wordings.keys) + 1 or not known:
            raise InputError(
                "--resume_from_checkpoint: its mined hard negatives belong to other training files or documents; "
                "go on with the files that the run began with"
            )
        self._use(kept_round)

    def _use(self, new: Round) -> None:
        self.round = new
        self.batches.set_negatives(new.negatives(self.table, self.texts.wordings.of_pairs))


def stand_ins(passages: PassageTable, num_pairs: int, number: int) -> Negatives:
    """Returns random hard negatives, `number` for each pair, to plan memory with before any are mined."""
    drawn = np.random.default_rng(0).integers(len(passages.ids), size=num_pairs * number)
    return Negatives.of(passages, passages.ids[drawn], np.arange(num_pairs + 1) * number)


class MiningPass:
    """Finds the candidates of all questions, and their scores, in one pass over the corpus."""

    def __init__(self, rounds: Rounds, number: int, step: int) -> None:
        """Prepares the pass for the round `number`, with the model of a step."""
        self.number, self.step, self.began = number, step, time.monotonic()
        self.texts, self.batches, self.evaluator = rounds.texts, rounds.batches, rounds.evaluator
        corpus, golds = self.evaluator.corpus, self.texts.wordings.golds
        ids = np.concatenate([corpus.passage_ids, self.texts.missing])
        self.gold_positions = positions_of(golds.ids, ids, np.argsort(ids))
        self.is_named = self.texts.bm25 >= 0
        of_golds = np.repeat(np.arange(len(golds)), np.diff(golds.offsets))
        asked = np.concatenate([of_golds, np.nonzero(self.is_named)[0]])
        self.pairs = PairScores(asked, np.concatenate([self.gold_positions, self.texts.bm25[self.is_named]]))
        is_ranked = "dense" in (rounds.settings.mine_from or MINED_FROM)
        depth = min(rounds.rules.depth, len(corpus)) if is_ranked else 0
        self.topk = RunningTopK(len(golds), depth, self.evaluator.device)

    def begin(self) -> None:
        """Embeds the questions, and the golds that the corpus lacks."""
        wordings, missing = self.texts.wordings, self.texts.missing
        embedded = np.zeros(len(missing), bool)
        self.questions = torch.empty(0)
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
            if not len(self.questions):
                self.questions = found.new_empty(len(wordings.keys), found.shape[1])
                of_missing = found.new_empty(len(missing), found.shape[1])
            self.questions[asked[first]], of_missing[numbers] = found.split([len(first), len(numbers)])
            embedded[numbers] = True
        behind = torch.arange(len(missing)) + len(self.evaluator.corpus)
        self.pairs.add(self.questions, behind, of_missing)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        if self.topk.k:
            search_block(self.questions, passages, positions, self.topk)
        self.pairs.add(self.questions, positions, passages)

    def end(self) -> None:
        merge_topk(self.topk)
        scores = torch.from_numpy(self.pairs.scores).to(self.evaluator.device)
        for part in distributed.gather(scores).view(distributed.world_size(), -1):
            self.pairs.merge(part.cpu().numpy())

    def choose(self, rules: MiningRules) -> Mined:
        """Chooses negatives from the candidates of all questions."""
        scores, positions = (part.cpu().numpy() for part in self.topk.result())
        golds = self.texts.wordings.golds
        of_golds, of_bm25 = np.split(self.pairs.scores, [len(golds.ids)])
        lexical = np.full(self.is_named.shape, -np.inf, np.float32)
        lexical[self.is_named] = of_bm25
        candidates = Candidates.united((positions, scores), (self.texts.bm25, lexical))
        scored = ScoredGolds(self.gold_positions, of_golds, golds.offsets)
        return choose(rules, self.texts.wordings.keys, candidates, scored, self.texts.signatures)
