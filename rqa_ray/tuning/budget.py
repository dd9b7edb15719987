"""Fair budgets: every trial sees as many questions, whatever its batch size, and reports at the same places.

Steps, warm-up, logging and evaluations follow from the batch size, so that a scheduler compares trials which have
seen as many questions, and the learning rate of each has come as far along its schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.training.job import Job
from rqa_ray.training.schedule import evaluations_due
from rqa_ray.tuning.space import with_values


@dataclass(frozen=True)
class Budget:
    """What every trial may use."""

    pairs: int  # question pairs that a trial sees
    evaluations: int  # evenly placed over them
    num_rows: int  # training pairs there are; no batch is larger
    steps: int  # the job's own, of which absolute numbers of steps are a share

    @classmethod
    def of(cls, job: Job, num_rows: int, fewest_evaluations: int) -> Budget:
        """The budget of a job whose global batch size is filled in."""
        batch = min(job.settings.global_batch_size or 0, num_rows)
        training = job.training
        steps = training["max_steps"]
        if steps <= 0:
            steps = max(1, round(training.get("num_train_epochs", 3.0) * num_rows / batch))
        strategy, every = str(training["eval_strategy"]), training["eval_steps"]
        if strategy == "epoch":
            evaluations = round(steps * batch / num_rows)
        elif strategy == "no":
            evaluations = 1
        else:
            evaluations = round(1 / every if every < 1 else steps / every)
        return cls(steps * batch, max(1, evaluations, fewest_evaluations), num_rows, steps)

    def batch_of(self, job: Job) -> int:
        """Questions of one optimizer step."""
        return min(job.settings.global_batch_size or 0, self.num_rows)

    def steps_of(self, batch: int) -> int:
        """The number of steps whose questions come nearest to the budget."""
        return max(1, int(self.pairs / batch + 0.5))

    def job_of(self, job: Job, values: dict[str, Any]) -> Job:
        """The job of a trial: `jobs/train.py` does the same with its config."""
        job = with_values(job, values)
        if (job.settings.global_batch_size or 0) % job.accumulation_steps:
            raise InputError(
                f"--tune_batch_size {job.settings.global_batch_size}: is no multiple of gradient_accumulation_steps "
                f"{job.accumulation_steps}"
            )
        steps = self.steps_of(self.batch_of(job))
        changes = {"max_steps": steps, "eval_strategy": "no"}
        if self.evaluations > 1:
            changes |= {"eval_strategy": "steps", "eval_steps": 1 / self.evaluations}
        for name in ("warmup_steps", "logging_steps"):
            if job.training[name] >= 1:
                changes[name] = max(1, round(job.training[name] * steps / self.steps))
        training = {name: value for name, value in job.training.items() if name != "num_train_epochs"}
        return replace(job, training=training | changes)

    def place(self, step: int, batch: int) -> int:
        """The number of the evaluation that was made at a step, the same for all trials which are as far."""
        steps = self.steps_of(batch)
        if step >= steps:
            return self.evaluations
        return min(self.evaluations - 1, evaluations_due(step, steps, 1 / self.evaluations))
