"""Checks a training job without training, and says what the job would do."""

from __future__ import annotations

from dataclasses import dataclass, field

from rqa_ray.data.counts import estimate
from rqa_ray.job_output import JobResult
from rqa_ray.texts import command
from rqa_ray.training.batch_sizes import micro_batch_size, with_steps
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import with_local_output
from rqa_ray.training.setup import check


@dataclass
class PreflightResult(JobResult):
    """What a training job would do; all checks have passed."""

    training_rows: int  # about; one for each question and gold passage
    questions_per_step: int
    workers: int
    lines: list[str]  # about the batches, for a person
    words: list[str] = field(default_factory=list)  # of the job

    def describe(self) -> str:
        """Returns lines for a person."""
        rows = f"about {self.training_rows:,} training pairs, one for each question and gold passage"
        return "\n".join([rows, *self.lines, f"all checks passed; next:\n  {command('jobs/train.py', *self.words)}"])


def preflight(job: Job) -> PreflightResult:
    """Checks arguments, files, model, workers and storage, and says what rows and batches the run would have.

    Raises:
        InputError: the user's input or arguments are wrong.
    """
    checked = check(with_local_output(job))
    counts = estimate(checked.files["train"], checked.labels)
    settings = checked.job.settings
    num_rows = max(1, round(counts.num_rows * (1 - (settings.eval_share or 0)) * settings.train_share))
    has_negatives = counts.num_negatives > 0 or checked.job.settings.mine_negatives > 0
    job = with_steps(checked.job, num_rows)
    workers = checked.workers.num_workers
    batch, lines = micro_batch_size(job, workers, num_rows, has_negatives)
    return PreflightResult(num_rows, batch * job.accumulation_steps, workers, lines, job.command[1:])
