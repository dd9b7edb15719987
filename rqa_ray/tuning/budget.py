"""Gives every trial the same budget: the same number of pairs for any batch size, reported at the same places.

Steps, warm-up, logging and evaluations follow from the batch size. So a scheduler compares trials that have seen the
same number of pairs, at the same place of their learning rate schedules. A trial on a share of the training pairs
sees the same number too, and so sees each question more often: with fewer steps, it would also show what less training
does, and not only what fewer labels do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rqa_ray.data.share import PairsInShare
from rqa_ray.errors import InputError
from rqa_ray.training.job import Job
from rqa_ray.training.schedule import evaluations_due
from rqa_ray.tuning.space import with_values


@dataclass(frozen=True)
class Budget:
    """What every trial may use."""

    pairs: int  # training pairs that a trial sees
    evaluations: int  # number of evaluations, at equal distances
    num_rows: int  # number of training pairs; no batch is larger
    steps: int  # the job's own steps; a number of steps in an argument counts as a share of them
    shared: PairsInShare | None = None  # the training pairs, if trials train on shares of them

    @classmethod
    def of(cls, job: Job, num_rows: int, fewest_evaluations: int, shared: PairsInShare | None = None) -> Budget:
        """Returns the budget of a job whose global batch size is filled in."""
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
        return cls(steps * batch, max(1, evaluations, fewest_evaluations), num_rows, steps, shared)

    def rows_of(self, job: Job) -> int:
        """Returns the number of training pairs of a trial's job."""
        if job.share.is_all or self.shared is None or self.shared.source_keys is None:
            return self.num_rows
        return PairsInShare.of(job.share, self.shared.source_keys).num_pairs

    def batch_of(self, job: Job) -> int:
        """Returns the number of questions in one optimizer step."""
        return min(job.settings.global_batch_size or 0, self.rows_of(job))

    def steps_of(self, batch: int) -> int:
        """Returns the number of steps whose questions come nearest to the budget."""
        return max(1, int(self.pairs / batch + 0.5))

    def job_of(self, job: Job, values: dict[str, Any]) -> Job:
        """Returns the job of a trial; `jobs/train.py` with its config does the same."""
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
        """Returns the number of the evaluation at a step.

        Trials at the same number have seen equally many questions.
        """
        steps = self.steps_of(batch)
        if step >= steps:
            return self.evaluations
        return min(self.evaluations - 1, evaluations_due(step, steps, 1 / self.evaluations))
