"""When a run evaluates and saves, and which of that is done: the one owner of both."""

from __future__ import annotations

from transformers import IntervalStrategy, TrainerCallback

from rqa_ray.evaluation.results import Evaluation


class Schedule(TrainerCallback):
    """Saving follows evaluation, step 0 and the last step are evaluated, and a stop puts an evaluation off.

    With `evaluates_beside` what is saved is evaluated later, by a task beside training.
    """

    def __init__(self, evaluates_beside: bool = False) -> None:
        self.evaluates_beside = evaluates_beside
        self.before = Evaluation()  # of step 0, the pretrained model
        self.evaluated_step = -1  # its evaluation is made, or left to the task beside training
        self.saved_step = -1
        self.beside_step = -1  # its checkpoint is to be evaluated beside training
        self.pending_step = -1  # a stop has put its evaluation off

    def is_evaluated_here(self, step: int) -> bool:
        """Whether the evaluation of a step was made in the loop."""
        return self.evaluated_step == step != self.beside_step

    def put_off(self, step: int, control) -> None:
        """Saves, and leaves the evaluation that is due at this step to the run that goes on."""
        if control.should_evaluate or self.beside_step == step:
            self.pending_step, self.evaluated_step, self.beside_step = step, -1, -1
            control.should_evaluate, control.should_save = False, True

    def on_train_begin(self, args, state, control, **kwargs):
        if self.before and not state.log_history:  # step 0 was evaluated elsewhere
            state.log_history.append({**self.before.metrics, "epoch": 0.0, "step": 0})

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated_step = state.global_step

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
        # Also called when a stop broke off in the middle of an epoch, whose end it then is not.
        is_end = not (control.should_training_stop and state.epoch % 1)
        control.should_evaluate &= is_end and self.evaluated_step != state.global_step
        self._save_and_evaluate(state, control)

    def _save_and_evaluate(self, state, control) -> None:
        control.should_save = control.should_evaluate
        if self.evaluates_beside and control.should_evaluate:
            self.evaluated_step = self.beside_step = state.global_step
            control.should_evaluate = False


def evaluations_due(step: int, max_steps: int, fraction: float) -> int:
    """How many evaluations are due by a step: the m-th at the step nearest to m x `fraction` of all.

    Of a number of steps that the fraction does not divide, the Trainer would make an interval and fewer evaluations.
    """
    return int((step + 0.5) / (fraction * max_steps) + 1e-9)
