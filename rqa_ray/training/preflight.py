"""Checks a training job without training, and says what the job would do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rqa_ray.data import instructions
from rqa_ray.data.counts import Sample, estimate
from rqa_ray.data.labels import Labels
from rqa_ray.data.sources import SHOWN_SOURCES, SourceCount, Sources, check_sources, describe_sources
from rqa_ray.job_output import JobResult
from rqa_ray.places import ALL_ARGS_FILE, read_json
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.texts import command
from rqa_ray.training.batch_sizes import micro_batch_size, with_steps
from rqa_ray.training.inputs import held_out_of
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import with_local_output
from rqa_ray.training.setup import check, with_data_mode


@dataclass
class PreflightResult(JobResult):
    """What a training job would do; all checks have passed."""

    training_rows: int  # about; one for each question and gold passage
    questions_per_step: int
    workers: int
    lines: list[str]  # about the data and the batches, for a person
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
    files, labels = checked.files["train"], checked.labels
    began_with = (read_json(Path(checked.job.output_dir) / ALL_ARGS_FILE) or {}) if job.resume else {}
    job = with_data_mode(checked.job, files, checked.model, began_with.get("data_mode"), labels)
    held_out, _ = held_out_of(job, files, labels, checked.resumed)
    lines = [held_out.describe()] if held_out.sources else []
    counts, kept = estimate(files, labels), held_out.kept * job.settings.train_share
    num_rows = max(1, round(counts.num_rows * kept))
    job = with_steps(job, num_rows)
    has_negatives = counts.num_negatives > 0 or job.settings.mine_negatives > 0
    workers = checked.workers.num_workers
    batch, about_batches = micro_batch_size(job, workers, num_rows, has_negatives)
    if job.settings.homogeneous_batches or len(checked.sources.names) <= SHOWN_SOURCES:
        sampled, about_instructions = sample_sources(checked.sources, files, labels, kept, checked.model)
        if job.settings.homogeneous_batches:
            check_sources(sampled, batch)
        lines += [*describe_sources(sampled), *about_instructions]
    lines += about_batches
    return PreflightResult(num_rows, batch * job.accumulation_steps, workers, lines, job.command[1:])


def sample_sources(
    sources: Sources, files: list[str], labels: Labels, kept: float, model: ModelSpec
) -> tuple[list[SourceCount], list[str]]:
    """Estimates the pairs and questions of each source from its first records, of which a share is kept.

    Also returns lines about the instructions of these records.
    """
    found: list[SourceCount] = []
    parts: list[instructions.Part] = []
    for number, name in enumerate(sources.names):
        places = [place for place, source in enumerate(sources.of_files) if source == number]
        if not places:  # other names name its files too
            found.append(SourceCount(name, 0, 0))
            continue
        of_source = [files[place] for place in places]
        sample = Sample.of(of_source, labels)
        given: instructions.Found = {}
        for _, record in sample.records:
            instructions.collect(given, record)
        parts.append((places[0], instructions.to_json(given)))
        pairs = sample.sum_over(of_source, lambda part: part.counts.num_rows)
        questions = sample.sum_over(of_source, lambda part: part.counts.num_questions)
        found.append(SourceCount(name, round(kept * pairs), round(kept * questions)))
    return found, instructions.with_prompts(model, parts, files)[1]
