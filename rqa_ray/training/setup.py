"""Prepares a run or a search from its parsed job: checks, workers, tokenized data."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from rqa_ray.cluster.connection import connect
from rqa_ray.cluster.model_copies import share_model
from rqa_ray.cluster.probe import check_nodes
from rqa_ray.cluster.workers import Workers, plan_workers
from rqa_ray.data.held_out import HeldOut
from rqa_ray.data.labels import Labels
from rqa_ray.data.readers import Blocks
from rqa_ray.data.records import find_labels
from rqa_ray.data.report import check_golds
from rqa_ray.data.rows import Corpus, Questions, fingerprint
from rqa_ray.data.share import PairsInShare
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.sources import PairsBySource, Sources
from rqa_ray.data.streaming import Stream, is_too_large
from rqa_ray.errors import InputError
from rqa_ray.evaluation.hybrid_report import found_by_bm25, why_not
from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.places import absolute, read_json
from rqa_ray.retriever.adapters import check_lora
from rqa_ray.retriever.encoder_settings import ModelSpec, encoder_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.matryoshka import check_dimensions
from rqa_ray.retriever.tokenizer import check_model, prefix_note
from rqa_ray.retriever.weights import check_weights
from rqa_ray.settings import INPUTS
from rqa_ray.texts import duration
from rqa_ray.training.arguments import check_report_to
from rqa_ray.training.batch_sizes import (
    batch_of,
    check_negatives,
    check_teacher,
    num_drawn,
    with_global_batch,
    with_steps,
    with_teacher_temperature,
)
from rqa_ray.training.checkpoints import StoredCheckpoint
from rqa_ray.training.fsdp import check_num_workers
from rqa_ray.training.inputs import Files, demo_files, input_files
from rqa_ray.training.job import Job
from rqa_ray.training.mining_texts import ClusterTexts, read_mining_texts
from rqa_ray.training.optimizer import check_optimizer
from rqa_ray.training.output_folder import storage_of
from rqa_ray.training.run_data import read_data
from rqa_ray.training.run_record import check_output_dir
from rqa_ray.training.spec import WorkerSpec
from rqa_ray.training.summary import write_bad_records


@dataclass
class Setup:
    """A job that is ready to start."""

    job: Job  # with its global batch size and data mode filled in
    workers: Workers
    model: ModelSpec
    blocks: dict[str, Blocks]  # corpus, eval, and test if there is one; train if it is resident
    stream: Stream | None  # the training files, if they are streamed
    train_files: list[str]
    labels: Labels  # of the training files
    held_out: HeldOut
    sources: Sources
    by_source: PairsBySource
    shared: PairsInShare  # the training pairs, of which `num_rows` are trained on
    has_negatives: bool
    has_scores: bool  # whether a teacher has scored hard negatives, or will
    skipped: Skipped
    about_data: list[str]  # lines about the data, as printed
    cut: dict[str, float]  # share of the texts that are cut at the limit of tokens, of the corpus and each split
    seconds: float  # in which the files were read and tokenized
    texts: ClusterTexts  # of the corpus
    bm25: ray.ObjectRef  # positions of BM25's best passages by split; None in it if no hybrid is measured

    @property
    def num_rows(self) -> int:
        """Training rows: one for each question and gold passage."""
        return self.shared.num_pairs

    def worker_spec(self, **more: Any) -> WorkerSpec:
        """Returns the spec for all training workers; `more` are further fields of it."""
        return WorkerSpec(
            settings=self.job.settings,
            training=self.job.training,
            model=self.model,
            blocks={name: part.refs for name, part in self.blocks.items()},
            output_dir=absolute(self.job.location),
            working_dir=os.getcwd(),
            num_cpus=self.workers.cpus,
            use_gpu=self.workers.use_gpu,
            bm25=self.bm25,
            held_out=self.held_out.digest,
            sources=self.sources if self.job.settings.homogeneous_batches else None,
            **more,
        )

    def read_mining_texts(self) -> Any:
        """Reads what mining needs to know about texts, and prints a line; returns a reference for the spec."""
        started = time.monotonic()
        # if the summary will need no index, the index of mining is not kept: its memory grows with the corpus
        corpus = replace(self.texts) if why_not(self.texts.number) else self.texts
        given = (self.num_rows, self.job.settings, corpus, self.shared.share)
        texts = read_mining_texts(self.train_files, self.labels, self.blocks, *given)
        print(
            f"mining: {len(texts.wordings.keys):,} questions; signatures of passages and BM25's candidates in "
            f"{duration(time.monotonic() - started)}"
        )
        return ray.put(texts)

    def fingerprints(self) -> dict[str, str]:
        """Returns `rows.fingerprint` of the eval and test questions, by split."""
        return fingerprints_of(self.blocks)

    def write_bad_records(self) -> None:
        """Lists the records that were left out in output_dir, and prints a line about them."""
        if self.skipped.kinds:
            print(write_bad_records(Path(self.job.output_dir), self.skipped.first, self.skipped.counts()))


@dataclass
class Checked:
    """A job with correct arguments, files, model, workers and storage; nothing is read or written yet."""

    job: Job  # with its global batch size filled in
    workers: Workers
    model: ModelSpec
    files: Files
    sources: Sources  # of the training files
    labels: Labels
    resumed: StoredCheckpoint | None  # the checkpoint from which the run goes on


def check(job: Job) -> Checked:
    """Checks files, model and output folder, connects to Ray, and checks all nodes; prints what was chosen.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written but demo data.
    """
    files, sources = (None, None) if job.settings.demo_size else input_files(job)
    labels = find_labels(job.settings.accepted_labels, files, job.settings.on_bad_record == "skip")
    model_folder = find_model_folder(job.settings.model_name_or_path or "", job.settings.model_revision)
    encoder = encoder_settings(model_folder, job.settings)
    model = ModelSpec(model_folder, encoder, job.settings.trust_remote_code)
    job.notes.extend(filter(None, [prefix_note(job.settings.model_name_or_path or "", model)]))
    resumed = check_output_dir(job, model_folder)
    check_report_to(job.training)
    check_optimizer(job.training)
    check_model(model)
    check_weights(model)
    check_dimensions(model, job.settings.matryoshka_dims or ())
    lora = check_lora(job.settings, model) if job.settings.lora_r else ""
    cluster = connect()
    workers = plan_workers(job.num_workers, job.settings.cpus_per_worker, bool(job.training.get("use_cpu")))
    job = with_global_batch(job, workers.num_workers)
    if job.training.get("fp16") and not workers.use_gpu:
        raise InputError("--fp16: needs a GPU; on CPUs choose --bf16 or neither")
    check_num_workers(job.training, workers.min_workers or workers.num_workers)
    seen = check_nodes({INPUTS[name]: paths for name, paths in (files or {}).items()}, storage_of(job))
    if files is None or sources is None:
        files = demo_files(job)
        sources = Sources.of({"demo": files["train"]})
    print(f"Ray: {cluster}; {workers.describe()}; {seen}")
    print(
        f"model: {job.settings.model_name_or_path}, {encoder.describe()}{lora and f'; {lora}'}", *job.notes, sep="\n"
    )
    if job.training.get("bf16") and not workers.use_gpu and "512" not in torch.backends.cpu.get_cpu_capability():
        print("warning: --bf16 is emulated on this CPU, and slower than fp32")
    return Checked(job, workers, model, files, sources, labels, resumed)


def set_up(job: Job, args_file: str) -> Setup:
    """Checks the job, reads and tokenizes the files, and prints what is odd about the data.

    `args_file` in output_dir has the arguments of the run that is resumed.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written.
    """
    checked = check(job)
    began = time.monotonic()
    job, workers = checked.job, checked.workers
    spec = replace(checked.model, copy=share_model(checked.model.folder))
    began_with = (read_json(Path(job.output_dir) / args_file) or {}) if job.resume else {}
    job = with_data_mode(job, checked.files["train"], spec, began_with.get("data_mode"), checked.labels)
    data = read_data(job, checked.files, checked.sources, spec, checked.labels, checked.resumed)
    train, num_pairs, mined = data.survey.train, data.shared.num_pairs, job.settings.mine_negatives
    job = with_steps(job, num_pairs, began_with.get("max_steps"))
    has_negatives = train.num_negatives > 0 or mined > 0
    draws_negatives = has_negatives and num_drawn(job, batch_of(job, num_pairs)) > 0
    check_golds(data.survey, data.files, draws_negatives)
    check_negatives(job.settings.negatives_per_question, has_negatives)
    has_scores = bool(job.settings.teacher) if mined else train.num_scored > 0
    check_teacher(job.settings.distill_weight, has_scores)
    lines = data.describe(job, draws_negatives)
    if has_scores:
        job = with_teacher_temperature(job, not train.num_no_cosines, began_with.get("teacher_temperature"))
    if job.settings.distill_weight and has_scores:
        lines.append(f"teacher: scores are divided by {job.settings.teacher_temperature:g} (--teacher_temperature)")
    if checked.resumed and not checked.resumed.before().of(fingerprints_of(data.blocks)):
        begun = "warning: the run began with other eval questions or passages"
        lines.append(f"{begun}; until the end, its earlier steps are compared by their metrics on those")
    print("\n".join(lines))
    splits, documents = asked_of(data.blocks)
    texts = ClusterTexts(data.blocks["corpus"].refs, len(documents.passage_ids), workers)
    return Setup(
        job=job,
        workers=workers,
        model=data.model,
        blocks=data.blocks,
        stream=data.stream,
        train_files=data.files["train"],
        labels=data.train_labels,
        held_out=data.held_out,
        sources=checked.sources,
        by_source=data.by_source,
        shared=data.shared,
        has_negatives=has_negatives,
        has_scores=has_scores,
        skipped=data.skipped,
        about_data=lines,
        cut=data.survey.shares_cut,
        seconds=time.monotonic() - began,
        texts=texts,
        bm25=ray.put(None if why_not(texts.number) else found_by_bm25(splits, texts.read_index())),
    )


def fingerprints_of(blocks: dict[str, Blocks]) -> dict[str, str]:
    """Returns `rows.fingerprint` of the eval and test questions, by split."""
    corpus = Corpus.from_tables(blocks["corpus"].tables())
    splits = [split for split in ("eval", "test") if split in blocks]
    return {split: fingerprint(Questions.from_tables(blocks[split].tables()), corpus) for split in splits}


def asked_of(blocks: dict[str, Blocks]) -> tuple[dict[str, AskedQuestions], Documents]:
    """Returns the questions of eval, and of test if there are any, and the documents of the corpus."""
    splits: dict[str, AskedQuestions] = {}
    splits |= {split: AskedQuestions(blocks[split].tables()) for split in ("eval", "test") if split in blocks}
    return splits, Documents(blocks["corpus"].tables())


def serve_windows(stream: Stream, job: Job, workers: Workers, runs_at_once: int = 1) -> Any:
    """Starts an actor of this process that makes the windows of one run over streamed training files."""
    seed = job.training.get("data_seed", job.training["seed"])
    return stream.serve(seed, runs_at_once * workers.num_workers * workers.cpus)


def with_data_mode(job: Job, train_files: list[str], spec: ModelSpec, resumed: str | None, labels: Labels) -> Job:
    """Returns the job with its data mode filled in, if the user gives none: by the size of the data.

    `resumed` is the data mode of the run that is resumed.
    """
    mode: Any = job.settings.data_mode
    if mode == "auto":
        mode = resumed or "auto"
    if mode == "auto":
        mode = "streaming" if is_too_large(train_files, spec, labels) else "resident"
    if mode == "streaming" and job.settings.homogeneous_batches:
        raise InputError(
            "--homogeneous_batches: these training files are too large for Ray's object store, and streamed batches "
            "mix all files; leave the flag out, or give --data_mode resident"
        )
    return replace(job, settings=replace(job.settings, data_mode=mode))
