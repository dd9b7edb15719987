"""When a run evaluates and saves."""

from transformers import IntervalStrategy, TrainerCallback

from rqa_ray.evaluation.evaluator import SplitResult, merge_metrics


class SaveWithEvaluation(TrainerCallback):
    """Saving follows evaluation, and the last step is evaluated; `beside` training, what is saved is, later."""

    def __init__(self, beside: bool = False) -> None:
        self.before: dict[str, SplitResult] = {}  # of step 0, where it is not evaluated here
        self.evaluated_step = -1
        self.beside = beside
        self.due_step = -1  # whose checkpoint is to be evaluated beside training

    def on_train_begin(self, args, state, control, **kwargs):
        if self.before and not state.log_history:
            state.log_history.append({**merge_metrics(self.before), "epoch": 0.0, "step": 0})

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated_step = state.global_step

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
        if self.beside and control.should_evaluate:
            self.evaluated_step = self.due_step = state.global_step
            control.should_evaluate = False


def evaluations_due(step: int, max_steps: int, fraction: float) -> int:
    """How many evaluations are due by a step: the m-th at the step nearest to m x `fraction` of all.

    Of a number of steps that the fraction does not divide, the Trainer would make an interval and fewer evaluations.
    """
    return int((step + 0.5) / (fraction * max_steps) + 1e-9)
