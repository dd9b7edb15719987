"""Says after the evaluation of step 0, before training: how long the run takes, and which gain its questions can show.

The evaluation has measured how fast this hardware encodes, so neither costs a forward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from transformers import IntervalStrategy, TrainerCallback

from rqa_ray.evaluation.metrics import question_metrics
from rqa_ray.evaluation.power import AskedSplit, describe_power
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.texts import duration
from rqa_ray.training.schedule import evaluations_due, rounds_due
from rqa_ray.training.trainer import ContrastiveTrainer

FORWARD_PASSES = 3  # time of a forward and a backward pass, in forward passes; gradient caching adds one


class Forecast(TrainerCallback):
    """Tells both lines on rank 0. A run that is resumed, or that did not evaluate step 0 itself, has no forecast."""

    def __init__(
        self,
        trainer: ContrastiveTrainer,
        asked: Mapping[str, AskedQuestions],
        tell: Callable[[str], None],
        num_candidates: int = 0,
    ) -> None:
        """Takes how many models the finish will evaluate at most, beside those that training evaluates."""
        self.trainer, self.asked, self.tell, self.num_candidates = trainer, asked, tell, num_candidates
        self._began = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.monotonic()

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.tell(self.describe_time(time.monotonic() - self._began))
            self.tell(self.describe_power())

    def describe_time(self, seconds: float) -> str:
        """Returns the line about the time of the run; the evaluation of step 0 took `seconds`."""
        evaluator, batches, state = self.trainer.evaluator, self.trainer.batches, self.trainer.state
        texts = [evaluator.corpus.tokens, *(part.tokens for part in evaluator.questions.values())]
        encoded = sum(int(part.lengths.sum()) for part in texts) / batches.world_size
        trained = sum(token_batch.num_tokens for token_batch in batches.make(0).token_batches)
        passes = (FORWARD_PASSES + batches.plan.gradient_cache) * self.trainer.args.gradient_accumulation_steps
        a_step, steps, evaluations = seconds * passes * trained / encoded, state.max_steps, self._evaluations()
        rounds = self._later_rounds()
        total = duration(steps * a_step + (evaluations + rounds + self.num_candidates) * seconds)
        beside = f"; {evaluations} evaluation{'s' * (evaluations > 1)} of {seconds:.1f} s" if evaluations else ""
        beside += f"; mining {rounds} time{'s' * (rounds > 1)} more" if rounds else ""
        beside += f"; the finish with up to {self.num_candidates} evaluations more" if self.num_candidates else ""
        return f"expected time: about {total}, for {steps:,} steps of {a_step:.1f} s each{beside}"

    def _later_rounds(self) -> int:
        """Returns how many rounds of mining encode the corpus after step 0, beside an evaluation of the same step."""
        rounds, state = self.trainer.rounds, self.trainer.state
        if rounds is None or rounds.settings.mine_every == self.trainer.args.eval_steps:
            return 0
        return rounds_due(state.max_steps, state.max_steps, rounds.settings.mine_every) - 1

    def _evaluations(self) -> int:
        """Returns for how many evaluations the steps of the run have to wait."""
        args, state = self.trainer.args, self.trainer.state
        if self.trainer.schedule.evaluates_beside:
            return 0
        if args.eval_strategy == IntervalStrategy.EPOCH:
            return math.ceil(state.num_train_epochs)
        if args.eval_strategy == IntervalStrategy.NO:
            return 1
        if args.eval_steps < 1:
            # a short run evaluates after each step, and not several times after one
            return min(evaluations_due(state.max_steps, state.max_steps, args.eval_steps), state.max_steps)
        return math.ceil(state.max_steps / args.eval_steps)

    def describe_power(self) -> str:
        """Returns the line about the smallest gains, from the rankings of the pretrained model."""
        ids, found = self.trainer.evaluator.corpus.passage_ids, self.trainer.found.splits
        splits = []
        for name, asked in self.asked.items():
            values = question_metrics(ids[found[name].positions], asked.gold_ids)
            splits.append(AskedSplit(name, values, asked.clusters.labels))
        return describe_power(splits)
