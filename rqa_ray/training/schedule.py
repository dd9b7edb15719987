"""Decides after which steps a run evaluates and saves, and remembers which evaluations and checkpoints are made."""

from __future__ import annotations

from transformers import IntervalStrategy, TrainerCallback

from rqa_ray.evaluation.metrics import greater_is_better
from rqa_ray.evaluation.results import Evaluation


class Schedule(TrainerCallback):
    """Tells the Trainer when to evaluate and to save, as one of its callbacks.

    Every evaluation is followed by a checkpoint. Step 0 and the last step are always evaluated. When the run is
    stopped, the evaluation that is due is put off to the resumed run.

    With `patience`, the run ends after so many evaluations in a row that are no better than the best before. All ranks
    decide alike, because all have the same metrics. So does a resumed run, because the checkpoint has all metrics.

    With `evaluates_beside`, a task beside training evaluates the checkpoints, and the loop evaluates step 0 only.
    """

    def __init__(self, evaluates_beside: bool = False, patience: int | None = None) -> None:
        self.evaluates_beside, self.patience = evaluates_beside, patience
        self.before = Evaluation()  # the evaluation of step 0, which is the pretrained model's
        self.made_up = Evaluation()  # that of the checkpoint that is resumed, if a stop had put it off
        self.evaluated_step = -1  # the last step that was evaluated, or left to the task beside training
        self.saved_step = -1
        self.beside_step = -1  # the last step whose checkpoint the task beside training evaluates
        self.pending_step = -1  # the step whose evaluation a stop has put off

    def is_evaluated_here(self, step: int) -> bool:
        """Returns whether the training loop itself evaluated a step."""
        return self.evaluated_step == step != self.beside_step

    def put_off(self, step: int, control) -> None:
        """Makes the run save now, and leaves the evaluation that is due at this step to the resumed run."""
        if control.should_evaluate or self.beside_step == step:
            self.pending_step, self.evaluated_step, self.beside_step = step, -1, -1
            control.should_evaluate, control.should_save = False, True

    def on_train_begin(self, args, state, control, **kwargs):
        if self.before and not state.log_history:  # another process has evaluated step 0
            state.log_history.append({**self.before.metrics, "epoch": 0.0, "step": 0})
        self.complete(state)

    def complete(self, state) -> None:
        """Adds the evaluation that a stop had put off to the history of the checkpoint that is resumed."""
        if self.made_up:
            entry = {**self.made_up.metrics_of("eval"), "epoch": state.epoch, "step": state.global_step}
            state.log_history.append(entry)

    def is_out_of_patience(self, state, metric: str) -> bool:
        """Returns whether the run ends early, by the evaluations that it has made."""
        return self.patience is not None and evaluations_since_best(state.log_history, metric) >= self.patience

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated_step = state.global_step
        if self.is_out_of_patience(state, args.metric_for_best_model):
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self.saved_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps < 1:
            now, before = (
                evaluations_due(step, state.max_steps, args.eval_steps)
                for step in (state.global_step, state.global_step - 1)
            )
            control.should_evaluate = now > before and args.eval_delay <= state.global_step
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        self._save_and_evaluate(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        # The Trainer also calls this when a stop ends the loop in the middle of an epoch, which is no end of an epoch.
        is_end = not (control.should_training_stop and state.epoch % 1)
        control.should_evaluate &= is_end and self.evaluated_step != state.global_step
        self._save_and_evaluate(state, control)

    def _save_and_evaluate(self, state, control) -> None:
        control.should_save = control.should_evaluate
        if self.evaluates_beside and control.should_evaluate:
            self.evaluated_step = self.beside_step = state.global_step
            control.should_evaluate = False


def evaluations_since_best(history: list[dict[str, float]], metric: str) -> int:
    """Returns how many evaluations of a history follow the first with the best value of a metric; 0 if it is empty."""
    values = [entry[metric] for entry in history if metric in entry]
    best = max if greater_is_better(metric) else min
    return len(values) - 1 - values.index(best(values)) if values else 0


def evaluations_due(step: int, max_steps: int, fraction: float) -> int:
    """Returns how many evaluations are due by a step.

    The m-th evaluation is due at the step nearest to m x `fraction` x `max_steps`. The Trainer would round the
    fraction to a whole number of steps, and so evaluate less often than asked.
    """
    return int((step + 0.5) / (fraction * max_steps) + 1e-9)


def rounds_due(step: int, max_steps: int, every: float | None) -> int:
    """Returns how many rounds of mining are due by a step: one before step 1, then one after each share of the run.

    There is at most one round a step, and none after the last step, because no batch follows it.
    """
    if not every:
        return 1
    return 1 + evaluations_due(min(step, max_steps - 1), max_steps, max(every, 1 / max_steps))
