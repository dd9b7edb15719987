"""Computes the batch sizes of a job, and how many steps and candidates they make."""

from __future__ import annotations

import math
from dataclasses import replace

from rqa_ray.errors import InputError
from rqa_ray.loss_settings import OF_COSINES, OF_WIDE_SCORES
from rqa_ray.settings import HYBRID
from rqa_ray.training.job import Job


def with_global_batch(job: Job, num_workers: int) -> Job:
    """Returns the job with its global batch size filled in."""
    accumulation = job.accumulation_steps
    total = job.settings.global_batch_size or job.training["per_device_train_batch_size"] * num_workers * accumulation
    if total % accumulation:
        raise InputError(f"--global_batch_size {total}: is no multiple of gradient_accumulation_steps {accumulation}")
    return replace(job, settings=replace(job.settings, global_batch_size=total))


def steps_for(num_pairs: int, pairs_per_step: int) -> int:
    """Returns how many optimizer steps suit a number of training pairs.

    The rule is 4 epochs of up to 1,000 pairs. With more pairs, the epochs fall with the root of their number, to 1
    epoch of 16,000 pairs or more. A run has 20 to 1,000 steps, and more where the first epoch needs more: the user
    expects that each label is used, and the expected time is printed before training.

    The rule was found with all-MiniLM-L6-v2, batches of 64, and learning rate 1e-4. On Faire (574 pairs), 24 to 36
    steps were the best on eval, which are 3 to 4 epochs. On MedQuAD (13,155 pairs), 24 to 36 steps reached most of
    the gain, and further steps added to it.
    """
    epochs = min(max(4 * math.sqrt(1_000 / num_pairs), 1), 4)
    one_epoch = math.ceil(num_pairs / pairs_per_step)
    return min(max(math.ceil(epochs * num_pairs / pairs_per_step), 20), max(1_000, one_epoch))


def with_steps(job: Job, num_rows: int, resumed: int | None = None) -> Job:
    """Returns the job with its number of steps filled in, if the user gives neither steps nor epochs.

    `resumed` is the number of steps of the run that is resumed.
    """
    if job.training["max_steps"] > 0 or "num_train_epochs" in job.training:
        return job
    if resumed and resumed > 0:
        return replace(job, training=job.training | {"max_steps": resumed})
    steps = steps_for(num_rows, batch_of(job, num_rows) * job.accumulation_steps)
    return replace(job, training=job.training | {"max_steps": steps}, chose_steps=True)


def describe_steps(job: Job, pairs_per_step: int, num_rows: int) -> str:
    """Returns a line about the length of a run."""
    steps = job.training["max_steps"]
    if steps < 0:
        steps = math.ceil(max(1, num_rows // pairs_per_step) * job.training.get("num_train_epochs", 3.0))
    chosen = "; neither --max_steps nor --num_train_epochs is given" if job.chose_steps else ""
    return f"steps: {steps:,}, which are {describe_pairs(steps * pairs_per_step, num_rows)}{chosen}"


def describe_pairs(seen: int, num_rows: int) -> str:
    """Says how many training pairs are seen, counted each time, and how many epochs these are.

    The Trainer counts epochs by whole batches, and so finds more of them.
    """
    return f"{seen:,} pairs, {seen / num_rows:.1f} epochs of {num_rows:,}"


def batch_of(job: Job, num_rows: int) -> int:
    """Returns how many pairs of a question and its gold meet in one loss."""
    return min((job.settings.global_batch_size or 0) // job.accumulation_steps, num_rows)


def num_drawn(job: Job, batch: int) -> int:
    """Returns how many hard negatives a batch of questions brings at most, if the questions have any."""
    return int(job.settings.hard_neg_ratio * batch) + job.settings.negatives_per_question * batch


def check_negatives(per_question: int, has_negatives: bool) -> None:
    """Raises InputError where questions are to bring hard negatives of their own, and none has any."""
    if per_question and not has_negatives:
        raise InputError(f"--negatives_per_question {per_question}: no training question has hard_neg_docs")


def check_teacher(distill_weight: float, has_scores: bool) -> None:
    """Raises InputError where a teacher's scores are to be followed, and no hard negative has any."""
    if distill_weight and not has_scores:
        raise InputError(
            f"--distill_weight {distill_weight:g}: no training question has hard_neg_scores; train on the train.jsonl "
            "that jobs/mine.py --teacher writes, or mine in training with --mine_negatives 8 --teacher hybrid"
        )


def with_teacher_temperature(job: Job, are_cosines: bool, resumed: float | None = None) -> Job:
    """Returns the job with the number that divides the teacher's scores filled in, if the user gives none.

    With a temperature of 1, scores from -1 to 1 would ask for a nearly flat distribution. `are_cosines` says if the
    scores of the training files are such scores. `resumed` is the number of the run that is resumed.
    """
    if job.settings.teacher_temperature:
        return job
    found = resumed or (OF_COSINES if are_cosines and job.settings.teacher != HYBRID else OF_WIDE_SCORES)
    from_data = {} if resumed else {"teacher_temperature": found}
    settings = replace(job.settings, teacher_temperature=found)
    return replace(job, settings=settings, from_data=job.from_data | from_data)


def micro_batch_size(job: Job, num_workers: int, num_rows: int, has_negatives: bool) -> tuple[int, list[str]]:
    """Returns how many pairs of a question and its gold meet in one loss, and lines about the candidates.

    Raises:
        InputError: there are fewer pairs than workers, or a question has no negatives.
    """
    lines = []
    batch, asked = batch_of(job, num_rows), (job.settings.global_batch_size or 0) // job.accumulation_steps
    if batch < asked:
        lines.append(f"warning: batches of {batch} pairs, as many as there are, not {asked}")
    if num_workers > batch:
        raise InputError(f"--num_workers {num_workers}: more workers than the {batch} pairs of a batch")
    ratio, own = job.settings.hard_neg_ratio, job.settings.negatives_per_question
    negatives = num_drawn(job, batch) if has_negatives else 0
    if batch == 1 and not negatives:
        raise InputError(
            "--per_device_train_batch_size: a batch of one pair and no hard negatives has nothing to learn from; "
            "raise the batch size, or add hard_neg_docs with --negatives_per_question 1"
        )
    workers = f"{num_workers} worker{'s' * (num_workers > 1)}"
    share = f" x {batch // num_workers} =" if batch % num_workers == 0 else ","
    some = f", up to {negatives} hard negatives" if negatives else ""
    lines.append(f"batch: {workers}{share} {batch} pairs{some}, {batch + negatives} candidates for each question")
    lines.append(describe_steps(job, batch * job.accumulation_steps, num_rows))
    if job.accumulation_steps > 1:
        lines.append(f"warning: accumulating {job.accumulation_steps} batches adds no negatives; a larger batch does")
    if has_negatives and ratio > 0 and int(ratio * batch) == 0 and not own:
        lines.append(f"warning: --hard_neg_ratio {ratio:g} of {batch} pairs is no hard negative")
    return batch, lines
