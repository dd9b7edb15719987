"""Reads and tokenizes the files of a run, and says what a person should know about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rqa_ray.data import instructions
from rqa_ray.data.columns import column
from rqa_ray.data.held_out import HeldOut
from rqa_ray.data.labels import Labels
from rqa_ray.data.readers import Blocks, read_inputs
from rqa_ray.data.report import brief, hard_negatives_that_answer
from rqa_ray.data.share import PairsInShare
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.sources import PairsBySource, Sources, describe_sources
from rqa_ray.data.streaming import Stream, open_stream
from rqa_ray.data.survey import Survey
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.training.checkpoints import StoredCheckpoint
from rqa_ray.training.inputs import Files, held_out_of
from rqa_ray.training.job import Job


@dataclass
class RunData:
    """The data of a run: tokenized, or counted if they are streamed."""

    files: Files  # the files of eval are those of train if eval questions are held out
    model: ModelSpec  # with the instructions of the training files as prompts
    blocks: dict[str, Blocks]  # corpus, eval, and test if there is one; train if it is resident
    stream: Stream | None  # the training files, if they are streamed
    held_out: HeldOut
    labels: Labels
    shared: PairsInShare
    by_source: PairsBySource
    survey: Survey
    skipped: Skipped
    about_instructions: list[str]

    @property
    def train_labels(self) -> Labels:
        """The labels with which the training files are read again."""
        return replace(self.labels, side=self.held_out.side("train"))

    def describe(self, job: Job, draws_negatives: bool) -> list[str]:
        """Returns lines about the data; `draws_negatives` says if batches have hard negatives."""
        survey, stream, settings = self.survey, self.stream, job.settings
        lines = [self.held_out.describe()] if self.held_out.sources else []
        lines += [*([stream.report()] if stream else []), *brief(survey, self.files), *self.about_instructions]
        asked = (key for keys in (survey.question_keys, stream.labeled if stream else ()) for key in keys)
        lines += self.labels.describe(asked)
        unused = "note: hard_neg_docs of the training files are not used; "
        if settings.mine_negatives:
            lines += [f"{unused}--mine_negatives takes their place"] * (survey.train.num_negatives > 0)
        elif draws_negatives:
            lines += hard_negatives_that_answer(survey)
        elif survey.train.num_negatives and not settings.hard_neg_ratio:
            lines.append(f"{unused}--negatives_per_question 1 would use them")
        if not job.share.is_all:
            lines.append(f"training on {self.shared.describe()} (--train_share {job.share.share:g})")
        return lines + describe_sources(self.by_source.counts(job.share))


def read_data(
    job: Job, files: Files, sources: Sources, spec: ModelSpec, labels: Labels, resumed: StoredCheckpoint | None
) -> RunData:
    """Reads the files of a job, whose data mode is filled in; holds out the eval questions that it asks for.

    `resumed` is the checkpoint from which the run goes on.

    Raises:
        InputError: the files are wrong, no questions can be held out, or the checkpoint was trained on some of them.
    """
    skip_bad, streamed = job.settings.on_bad_record == "skip", job.settings.data_mode == "streaming"
    held_out, skipped = held_out_of(job, files["train"], labels, resumed)
    if held_out.sources:
        files = files | {"eval": files["train"]}
    of_train = replace(labels, side=held_out.side("train"))
    stream = open_stream(files["train"], spec, skip_bad, of_train, job.share) if streamed else None
    read = {name: paths for name, paths in files.items() if not (streamed and name == "train")}
    blocks = read_inputs(read, spec, skip_bad, labels, held_out)
    all_skipped = [stream.skipped if stream else skipped, *(part.skipped for part in blocks.values())]
    found = stream.instructions if stream else instructions.parts_of(blocks["train"].small)
    spec, about_instructions = instructions.with_prompts(spec, found, files["train"])
    data = RunData(
        files=files,
        model=spec,
        blocks=blocks,
        stream=stream,
        held_out=held_out,
        labels=labels,
        shared=stream.shared if stream else PairsInShare.of(job.share, column(blocks["train"].small, "source_key")),
        by_source=stream.by_source(sources) if stream else PairsBySource.of(sources, blocks["train"].small),
        survey=Survey.of({name: part.small for name, part in blocks.items()}, stream.counts if stream else None),
        skipped=Skipped.of(all_skipped),
        about_instructions=about_instructions,
    )
    for part in blocks.values():
        part.small.clear()  # else it would stay in the object store until the end of the run
    return data
