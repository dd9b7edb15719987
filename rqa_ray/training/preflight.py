"""Checks a training job without training, and says what the job would do."""

from __future__ import annotations

from rqa_ray.data.counts import estimate
from rqa_ray.training.batch_sizes import micro_batch_size, with_steps
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import with_local_output
from rqa_ray.training.setup import check


def preflight(job: Job) -> list[str]:
    """Checks arguments, files, model, workers and storage; returns lines about the rows and batches of the run.

    Raises:
        InputError: the user's input or arguments are wrong.
    """
    checked = check(with_local_output(job))
    counts = estimate(checked.files["train"], checked.labels)
    num_rows = max(1, round(counts.num_rows * checked.job.settings.train_share))
    has_negatives = counts.num_negatives > 0 or checked.job.settings.mine_negatives > 0
    job = with_steps(checked.job, num_rows)
    _, lines = micro_batch_size(job, checked.workers.num_workers, num_rows, has_negatives)
    return [f"about {num_rows:,} training rows, one for each question and gold passage", *lines]
