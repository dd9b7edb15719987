"""Evaluates models: beside training, each checkpoint; or on all workers, before and after training.

A search calls `evaluate_worker` for the pretrained model before its trials. A run and a search call `finish_worker` if
candidates for the model that they leave are not evaluated yet. Of these candidates, only the chosen one and the
pretrained model are evaluated on the test questions.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.errors import first_line
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside, push_folder
from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.folder import load_encoder, save_encoder
from rqa_ray.retriever.sharding import shard, whole, whole_weights
from rqa_ray.scratch import scratch_folder
from rqa_ray.training.arguments import loggers_of
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.checkpoint_files import MODEL_FOLDER, StepNote, save_evaluations
from rqa_ray.training.checkpoints import SCORE, step_of, write_evaluation, write_manifest
from rqa_ray.training.finish import EvalQuestions, Finish, finish_here, score
from rqa_ray.training.finish_results import FinishResults
from rqa_ray.training.spec import WorkerResult, WorkerSpec

OnProgress = Callable[[int, int], None]
BESIDE_FOLDER = "evaluated-beside"  # in the folder of TensorBoard's files: the evaluations beside training


def evaluate_beside(checkpoint: ray.train.Checkpoint, spec: WorkerSpec) -> dict[str, float]:
    """Evaluates a checkpoint on the full corpus with the spec's `spare` resources, and stores the result beside it.

    Returns the eval metrics, and the score by which Ray ranks checkpoints.
    """
    assert spec.spare is not None
    device = torch.device("cuda" if spec.spare.get("num_gpus") else "cpu")
    # In its own thread: without privileges a thread cannot take back that it gives way, and Ray uses this process
    # again.
    with checkpoint.as_directory() as folder, ThreadPoolExecutor(1, initializer=_give_way) as thread:
        num_threads = max(1, int(spec.spare["num_cpus"]))
        model = thread.submit(_open, spec, f"{folder}/{MODEL_FOLDER}", num_threads, device).result()
        temperature = StepNote.load(Path(folder)).temperature or spec.settings.temperature
        found = thread.submit(model.evaluate, temperature).result()
    step = step_of(checkpoint)
    write_evaluation(checkpoint, step, found)
    metric, metrics = spec.training["metric_for_best_model"], found.metrics_of("eval")
    show_in_tensorboard(spec, step, metrics)
    note = f"evaluated step {step} beside training: {metric.rsplit('/', 1)[-1]} {metrics[metric]:.3f}"
    spec.mailbox.put.remote(spec.run, None, note)
    return {**metrics, SCORE: score(metrics, metric, step)}


def show_in_tensorboard(spec: WorkerSpec, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of an evaluation beside training as a TensorBoard file, if `--report_to` names TensorBoard.

    The file is in a folder of its own, which TensorBoard shows as a run of its own: of the files in a folder,
    TensorBoard follows the newest alone, and rank 0 goes on writing to the file that it began with.
    """
    if not {"tensorboard", "all"} & {*loggers_of(spec.training)}:
        return
    from torch.utils.tensorboard import SummaryWriter  # takes a second, and most processes here need none
    from transformers.integrations.integration_utils import rewrite_logs

    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        with SummaryWriter(scratch) as writer:
            for name, value in rewrite_logs(metrics).items():
                writer.add_scalar(name, value, step)
        try:
            push_folder(scratch, inside(spec.logging_location, BESIDE_FOLDER))
        except OSError as error:
            text = f"warning: TensorBoard did not get the evaluation of step {step} ({first_line(error)})"
            spec.mailbox.put.remote(spec.run, None, text)


def evaluate_worker(spec: WorkerSpec) -> WorkerResult:
    """Evaluates the pretrained model on the eval and test questions, together with the other ranks.

    The model is stored with the result as a checkpoint of step 0.
    """
    evaluator = _open(spec, spec.model.folder, spec.num_cpus, ray.train.torch.get_device())
    evaluator.on_progress = _telling(spec, Progress(spec.phase))
    found = evaluator.evaluate(spec.settings.temperature)
    with scratch_folder() as scratch:
        checkpoint = None
        encoder = evaluator.embedder.encoder
        with whole(encoder):
            if distributed.rank() == 0:
                save_encoder(encoder, f"{scratch}/{MODEL_FOLDER}")
        if distributed.rank() == 0:
            save_evaluations(Path(scratch), found, found)
            StepNote(0, held_out=spec.held_out).save(Path(scratch))
            write_manifest(Path(scratch), 0)
            checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report({SCORE: 0.0}, checkpoint=checkpoint)
    return WorkerResult()


def finish_worker(spec: WorkerSpec) -> WorkerResult:
    """Scores the candidates that have no evaluation yet, together with the other ranks, and stores the results.

    The candidate that is chosen, and the pretrained model, are evaluated on the test questions too.
    """
    assert spec.finish is not None
    progress = Progress(spec.phase)
    full = _open(spec, spec.model.folder, spec.num_cpus, ray.train.torch.get_device())
    full.on_progress = _telling(spec, progress)
    of_bm25 = spec.bm25 and ray.get(spec.bm25)
    of_eval = {"eval": full.questions["eval"]}
    without_test = RetrievalEvaluator(full.corpus, of_eval, full.embedder, of_bm25, full.dimensions)
    without_test.on_progress = full.on_progress
    questions = replace(EvalQuestions.of(without_test), clusters=spec.finish.clusters)
    finish = Finish(spec.settings.finish, spec.training["metric_for_best_model"], questions)
    encoder, results = full.embedder.encoder, FinishResults(spec.finish)
    base = whole_weights(encoder)

    def temperature_of(candidate: Candidate) -> float:
        return results.temperature(candidate, spec.settings.temperature)

    def tell(candidate: Candidate) -> None:
        progress.phase = f"evaluating {candidate}, texts"

    with scratch_folder() as scratch:
        weights = results.weights(base, encoder, Path(scratch), spec.settings.trust_remote_code)
        steps = spec.finish.checkpoints
        choice = finish_here(finish, steps, weights, without_test, temperature_of, results, tell)
    # A run that goes on with new test questions has not ranked them with the pretrained model.
    for candidate in dict.fromkeys([choice.candidate, BASE]):
        known = results.get(candidate) or Evaluation()
        if distributed.any_rank(known.splits.keys() < full.questions.keys(), full.device):
            if candidate != choice.candidate:
                encoder.load_state_dict(base)
            tell(candidate)
            found = full.evaluate(temperature_of(candidate))
            if distributed.rank() == 0:
                results[candidate] = found
    return WorkerResult()


def _telling(spec: WorkerSpec, progress: Progress) -> OnProgress:
    """Returns a function that sends the number of encoded texts to the driver."""

    def on_progress(done: int, total: int) -> None:
        progress.done, progress.total = done, total
        if distributed.rank() == 0:
            spec.mailbox.put.remote(spec.run, as_record(progress))

    return on_progress


def _give_way() -> None:
    """Lets this thread and its child threads run only where a core has nothing else to do (Linux: SCHED_IDLE).

    Ray's own processes then interrupt the evaluation, and not the training on the next core.
    """
    with suppress(AttributeError, OSError):  # another operating system, or a sandbox that forbids it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _open(spec: WorkerSpec, model_folder: str, num_threads: int, device: torch.device) -> RetrievalEvaluator:
    """Loads a model and the questions that it is evaluated on."""
    torch.set_num_threads(num_threads)
    model = spec.model
    bring_model(model.folder, model.copy)
    tables = {name: fetch_tables(refs) for name, refs in spec.blocks.items() if name != "train"}
    if spec.fsdp:
        encoder = load_encoder(model_folder, model.settings, None, model.trust_remote_code)
        shard(encoder, device, bool(spec.training.get("bf16")))
        embedder = Embedder(encoder)
    else:
        embedder = Embedder.load(replace(model, folder=model_folder), device)
    embedder.options.max_rows = spec.training["per_device_eval_batch_size"]
    embedder.options.mixed_precision = spec.eval_precision
    splits = {split: Questions.from_tables(tables[split]) for split in tables if split != "corpus"}
    corpus = Corpus.from_tables(tables["corpus"])
    of_bm25, dimensions = spec.bm25 and ray.get(spec.bm25), spec.settings.matryoshka_dims or ()
    return RetrievalEvaluator(corpus, splits, embedder, of_bm25, dimensions)
