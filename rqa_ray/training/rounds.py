"""Mines hard negatives with the model in training, round by round, on all ranks together.

A round needs the embeddings of the whole corpus. If an evaluation is due at the same step, both use one encoding. Each
rank searches its share of the corpus, the results of all ranks are merged, and every rank chooses the same negatives
from them by the rules of `corpus/mining.py`. Round 1 is mined with the pretrained model, before the first step; the
hard negatives of the training files are round 0.

Q questions (distinct wordings), P passages, G golds of all questions, N pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rqa_ray.corpus.mined_files import MOST_SUSPECTS, closest_suspects
from rqa_ray.corpus.mining import MiningRules, Verdict, Wordings
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.columns import runs
from rqa_ray.data.passages import Negatives, PassageTable
from rqa_ray.errors import InputError
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.metrics import greater_is_better
from rqa_ray.settings import MINED_FROM, TrainSettings
from rqa_ray.texts import duration
from rqa_ray.training.mining_pass import Choice, MiningPass, MiningTexts
from rqa_ray.training.schedule import rounds_due

NEGATIVES_FILE = "negatives.npz"
SUSPECT = np.dtype(  # what a round keeps of a suspect
    [
        ("question", np.int64),  # `schema.question_key`
        ("passage", np.int64),  # its id
        ("score", np.float32),
        ("gold_score", np.float32),  # of the lowest gold
        ("dense_rank", np.int32),  # from 1; 0 if that ranking does not have the passage
        ("bm25_rank", np.int32),
    ]
)


@dataclass(frozen=True)
class Round:
    """The hard negatives of one round: those of question i are offsets[i] to offsets[i + 1]."""

    number: int
    ids: np.ndarray  # passage ids
    scores: np.ndarray  # scores of the model that mined the round, or of the hybrid
    offsets: np.ndarray  # (Q + 1,)
    quality: float  # metric of that model on the eval questions; NaN if it was not evaluated
    gold_scores: np.ndarray  # (G,) scores of the golds, in the order of `Wordings.golds`
    weight: float  # of the model in the hybrid that gave the scores; NaN if the model alone did
    num_suspects: int = 0  # passages that were left out because they may be answers
    suspects: np.ndarray = field(default_factory=lambda: np.zeros(0, SUSPECT))  # of them the closest to a gold

    @classmethod
    def of(cls, choice: Choice, keys: np.ndarray, passage_ids: np.ndarray, number: int, quality: float) -> Round:
        """Returns the round of the negatives that were drawn; `keys` (Q,), and `passage_ids` (P,) in corpus order."""
        drawn = choice.mined.of(Verdict.NEGATIVE)
        weight = choice.weight.weight if choice.weight else math.nan
        ids = passage_ids[drawn.positions]
        count, suspects = choice.mined.counts()["suspect"], written_suspects(choice, keys, passage_ids)
        return cls(number, ids, drawn.scores, drawn.offsets, quality, choice.golds.scores, weight, count, suspects)

    def negatives(self, table: PassageTable, wordings: Wordings) -> Negatives:
        """Returns the negatives of all pairs, with the scores of the hybrid where it is the teacher."""
        of_pairs = wordings.of_pairs
        places, offsets = runs(self.offsets[of_pairs], np.diff(self.offsets)[of_pairs])
        found = Negatives.of(table, self.ids[places], offsets, round=self.number)
        if not math.isnan(self.weight):
            found.scores, found.gold_scores = self.scores[places], self.gold_scores[wordings.gold_of_pairs]
        return found


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
        self.texts = texts if settings.teacher else replace(texts, hybrid=None)
        self.settings, self.batches, self.evaluator = settings, batches, evaluator
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
        if number <= self.done or self._keeps(number, step, quality):
            return None
        depth = self.rules.depth if "dense" in (self.settings.mine_from or MINED_FROM) else 0
        return MiningPass(self.texts, self.batches, self.evaluator, depth, number, step)

    def finish(self, found: MiningPass, quality: float) -> None:
        """Chooses negatives from what a pass has found and uses them from now on, unless the model got worse.

        Raises:
            ValueError: rounds of other settings began the pass, with a teacher where there is none here, or without.
        """
        number, step = found.number, found.step
        if self._keeps(number, step, quality):
            return
        choice = found.choose(replace(self.rules, round=number))
        if bool(choice.weight) != bool(self.settings.teacher):
            raise ValueError(f"--teacher {self.settings.teacher}: the pass was begun with another teacher")
        self.done, mined = number, choice.mined
        self._use(Round.of(choice, self.texts.wordings.keys, self.evaluator.corpus.passage_ids, number, quality))
        counts, seconds = mined.counts(), time.monotonic() - found.began
        leaks = " and ".join(f"{leaked:,} {split}" for split, leaked in self.leaks.items())
        self.tell(
            f"mined round {number} at step {step}: {len(mined.lowest):,} questions, {counts['negative']:,} negatives, "
            f"{counts['suspect']:,} suspects left out; "
            + (f"golds of {leaks} questions are among the negatives; " if leaks else "")
            + duration(seconds)
        )
        if choice.weight:
            self.tell(f"teacher of round {number}: {choice.weight.describe()}")
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

    @property
    def num_suspects(self) -> int:
        """Number of suspects that the round in use has left out."""
        return self.round.num_suspects if self.round else 0

    @property
    def leaks(self) -> dict[str, int]:
        """How many questions of eval and test have a gold among the negatives in use, by split; those above 0."""
        negatives = self.round.ids if self.round else np.zeros(0, np.int64)
        found = {split: asked.golds.num_with(negatives) for split, asked in self.evaluator.questions.items()}
        return {split: number for split, number in found.items() if number}

    def save(self, folder: Path) -> None:
        """Writes the round in use into a checkpoint folder."""
        if self.round:
            np.savez(folder / NEGATIVES_FILE, done=self.done, **vars(self.round))

    def load(self, folder: Path) -> None:
        """Uses the round of a checkpoint folder. If it has none, a round is due before the next batch.

        Raises:
            InputError: the round belongs to other questions or passages, or to no teacher where there is one now.
        """
        if not (folder / NEGATIVES_FILE).exists():
            return
        with np.load(folder / NEGATIVES_FILE) as kept:
            values = dict(kept)
        self.done = int(values.pop("done"))
        number, quality, weight = (float(values.pop(name, math.nan)) for name in ("number", "quality", "weight"))
        values.setdefault("gold_scores", np.zeros(0))  # earlier versions had no teacher
        suspects = int(values.pop("num_suspects", 0))
        kept_round = Round(int(number), quality=quality, weight=weight, num_suspects=suspects, **values)
        known = np.isin(kept_round.ids, self.table.ids).all()
        if len(kept_round.offsets) != len(self.texts.wordings.keys) + 1 or not known:
            raise InputError(
                "--resume_from_checkpoint: its mined hard negatives belong to other training files or documents; "
                "go on with the files that the run began with"
            )
        if self.texts.hybrid and math.isnan(kept_round.weight):
            raise InputError(
                "--resume_from_checkpoint: its hard negatives were mined without --teacher; go on without --teacher, "
                "or begin anew with --overwrite_output_dir"
            )
        self._use(kept_round)

    def _use(self, new: Round) -> None:
        self.round = new
        self.batches.set_negatives(new.negatives(self.table, self.texts.wordings))


def written_suspects(choice: Choice, keys: np.ndarray, passage_ids: np.ndarray) -> np.ndarray:
    """Returns those suspects that a person should look at, the closest to its gold first: an array of SUSPECT."""
    found, levels = closest_suspects(choice.mined)
    order = np.argsort(-levels, kind="stable")[:MOST_SUSPECTS]
    questions = found.questions[order]
    made = np.zeros(len(order), SUSPECT)
    made["question"], made["passage"] = keys[questions], passage_ids[found.positions[order]]
    made["score"], made["gold_score"] = found.scores[order], choice.mined.lowest[questions]
    made["dense_rank"], made["bm25_rank"] = found.dense_ranks[order], found.bm25_ranks[order]
    return made


def stand_ins(passages: PassageTable, num_pairs: int, number: int) -> Negatives:
    """Returns random hard negatives, `number` for each pair, to plan memory with before any are mined."""
    drawn = np.random.default_rng(0).integers(len(passages.ids), size=num_pairs * number)
    return Negatives.of(passages, passages.ids[drawn], np.arange(num_pairs + 1) * number)
