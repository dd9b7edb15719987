"""One training run, from a parsed job to the files in output_dir.

1. Check what needs no Ray: files, model folder, output folder.
2. Connect, plan the workers, read and tokenise the data, say what is odd about it.
3. Train in a thread; the main thread draws the progress line and takes Ctrl-C and SIGTERM.
4. Take the best of the stored checkpoints, write model, results and predictions, print the summary.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from rqa_ray.arguments import Job
from rqa_ray.data.demo import write_demo
from rqa_ray.data.files import find_files
from rqa_ray.data.records import check_beginnings
from rqa_ray.errors import InputError
from rqa_ray.preflight import WorkerPlan, connect, plan_workers  # before Ray: makes it quiet
from rqa_ray.retriever.saving import EncoderSettings, find_model_folder, read_settings

# isort: split
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer

from rqa_ray.data.readers import Blocks, TokeniserSpec, read_inputs
from rqa_ray.training import checkpoints as stored
from rqa_ray.training import outputs
from rqa_ray.training.checkpoints import Mailbox
from rqa_ray.training.progress import Progress, ProgressLine
from rqa_ray.training.report import data_report
from rqa_ray.training.resume import RunRecord, check_output_dir, open_run
from rqa_ray.training.worker import train_worker

INPUTS = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "full_dataset_file_path"}
POLL_SECONDS = 0.5
DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS = 200, 520, 450
STOP_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopped(SystemExit):
    """The run was stopped by a signal, its state saved; `code` is the exit code."""


def train(job: Job) -> None:
    """Runs a training job to its end and prints what it achieved.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written.
        Stopped: a signal ended the run after its state was saved.
    """
    files = None if job.settings.demo_size else input_files(job)
    model_folder = find_model_folder(job.settings.model_name_or_path or "", job.settings.model_revision)
    encoder = encoder_settings(job, model_folder)
    check_output_dir(job)
    cluster = connect()
    plan = plan_workers(job.settings, bool(job.training.get("use_cpu")))
    job = batch_arithmetic(job, plan)
    if files is None:
        files = demo_files(job)
    print(f"Ray: {cluster}; {plan.describe()}")
    print(f"model: {job.settings.model_name_or_path}, {encoder.describe()}")
    for note in job.notes:
        print(note)
    if job.training.get("bf16") and not plan.use_gpu and "512" not in torch.backends.cpu.get_cpu_capability():
        print("warning: --bf16 is emulated on this CPU, and slower than fp32")

    spec = TokeniserSpec(model_folder, encoder, job.settings.trust_remote_code)
    blocks = read_inputs(files, spec)
    lines, num_rows = data_report(blocks)
    print("\n".join(lines))
    micro_batch = (job.settings.global_batch_size or 0) // job.accumulation_steps
    if micro_batch > num_rows:
        print(f"warning: batches of {num_rows} questions, as many as there are, not {micro_batch}")
        micro_batch = num_rows
    if plan.num_workers > micro_batch:
        raise InputError(f"--num_workers {plan.num_workers}: more workers than the {micro_batch} questions of a batch")

    record = open_run(job)
    print(f"checkpoints in {record.storage_path}")
    config = {
        "settings": vars(job.settings),
        "training": job.training,
        "output_dir": os.path.abspath(job.output_dir),  # workers have another working directory
        "micro_batch": micro_batch,
        "encoder": encoder,
        "model_folder": model_folder,
        "blocks": {name: part.refs for name, part in blocks.items()},
        "cpus": plan.cpus,
        "use_gpu": plan.use_gpu,
        "resume_from": record.resume_from,
    }
    outcome = fit(job, plan, record, config)
    if outcome["signal"]:
        stop_message(job, outcome)
    finish(job, record, encoder, blocks, outcome["result"])


def input_files(job: Job) -> dict[str, list[str]]:
    """Files by input name: train, eval, test, corpus."""
    given = {name: (flag, getattr(job.settings, flag)) for name, flag in INPUTS.items()}
    files = {name: find_files(value, flag) for name, (flag, value) in given.items() if value}
    for name, paths in files.items():
        check_beginnings(paths, "documents" if name == "corpus" else "questions")
    return files


def demo_files(job: Job) -> dict[str, list[str]]:
    """Writes the built-in data under output_dir."""
    folder = Path(job.output_dir) / "demo_data"
    paths = write_demo(folder, job.settings.demo_size or 0, DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS)
    return {name: [str(paths[flag])] for name, flag in INPUTS.items()}


def encoder_settings(job: Job, model_folder: str) -> EncoderSettings:
    """The folder's settings with the flags over them; notes a forgotten prefix."""
    settings = job.settings
    encoder = read_settings(
        model_folder,
        pooling=settings.pooling_type,
        similarity=settings.similarity,
        max_seq_length=settings.max_seq_length,
        query_prefix=settings.query_prefix,
        passage_prefix=settings.passage_prefix,
    )
    name = (settings.model_name_or_path or "").lower()
    wanted = {"e5": "--query_prefix 'query: ' --passage_prefix 'passage: '", "bge": "--query_prefix 'Represent ...: '"}
    for family, flags in wanted.items():
        if family in name.replace("/", "-").split("-") and not encoder.has_prefixes:
            job.notes.append(f"warning: {family} models were trained with prefixes and none is set; see {flags}")
    return encoder


def batch_arithmetic(job: Job, plan: WorkerPlan) -> Job:
    """The job with its global batch size filled in, and a note that says how many candidates a question has."""
    settings, accumulation = job.settings, job.accumulation_steps
    default = job.training["per_device_train_batch_size"] * plan.num_workers * accumulation
    total = settings.global_batch_size or default
    if total % accumulation:
        raise InputError(
            f"--global_batch_size {total}: has to be a multiple of gradient_accumulation_steps {accumulation}"
        )
    batch = total // accumulation
    negatives = int(settings.hard_neg_ratio * batch)
    notes = [
        *job.notes,
        f"batch: {batch} questions over {plan.num_workers} worker{'s' * (plan.num_workers > 1)} and {negatives} hard "
        f"negatives, {batch + negatives} candidates for each question",
    ]
    if accumulation > 1:
        notes.append(f"warning: accumulating {accumulation} batches adds no negatives; --global_batch_size alone does")
    if settings.hard_neg_ratio > 0 and negatives == 0:
        notes.append(f"warning: --hard_neg_ratio {settings.hard_neg_ratio:g} of {batch} questions is no hard negative")
    return replace(job, settings=replace(settings, global_batch_size=total), notes=notes)


def fit(job: Job, plan: WorkerPlan, record: RunRecord, config: dict[str, Any]) -> dict[str, Any]:
    """Runs the workers to their end; returns rank 0's result, and the signal that stopped them, if one did."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    keep = job.training.get("save_total_limit") or 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**config, "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers, use_gpu=plan.use_gpu, resources_per_worker=plan.resources
        ),
        run_config=ray.train.RunConfig(
            name=record.run_names[-1],
            storage_path=record.storage_path,
            failure_config=ray.train.FailureConfig(max_failures=job.settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=keep, checkpoint_score_attribute=stored.SCORE, checkpoint_score_order="max"
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome: dict[str, Any] = {"result": None, "error": None, "signal": None}

    def run() -> None:
        try:
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    def on_signal(number: int, _: Any) -> None:
        if outcome["signal"]:
            os._exit(STOP_EXIT_CODES[signal.Signals(number)])
        outcome["signal"] = signal.Signals(number)

    # Train would install its own handler on the main thread, which aborts without saving.
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    handlers = {number: signal.signal(number, on_signal) for number in STOP_EXIT_CODES}
    show = ProgressLine()
    try:
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if outcome["signal"] and not asked:
                asked = True
                mailbox.request_stop.remote()
                show.clear()
                print("stopping: saving the state after this step; again to stop at once", file=sys.stderr)
            draw(show, mailbox, job)
    finally:
        show.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(outcome["error"], WorkerGroupError):
        rank, failure = min(outcome["error"].worker_failures.items())
        print(f"error: training failed on rank {rank}: {failure}\n{how_to_go_on(job)}", file=sys.stderr)
        raise SystemExit(1)
    if outcome["error"]:
        raise outcome["error"]
    if not (outcome["result"] or {}).get("stopped"):
        outcome["signal"] = None  # it came when the run had ended
    return outcome


def draw(show: ProgressLine, mailbox: Any, job: Job) -> None:
    """Shows the newest record and prints the workers' notes."""
    try:
        progress, notes = ray.get(mailbox.take.remote(), timeout=5)
    except RayError:
        return
    for note in notes:
        show.clear()
        print(note)
    if not job.training.get("disable_tqdm"):
        show.draw(Progress(**progress))


def stop_message(job: Job, outcome: dict[str, Any]) -> None:
    """Says how to go on, and raises Stopped."""
    print(f"stopped after step {outcome['result']['step']}, state saved; {how_to_go_on(job)}")
    raise Stopped(STOP_EXIT_CODES[outcome["signal"]])


def how_to_go_on(job: Job) -> str:
    """The command that resumes this run."""
    words = [word for word in sys.argv if not word.startswith(("--overwrite_output_dir", "--resume_from_checkpoint"))]
    return f"go on in {job.output_dir} with\n  {shlex.join(['python', *words, '--resume_from_checkpoint', 'true'])}"


def finish(
    job: Job, record: RunRecord, encoder: EncoderSettings, blocks: dict[str, Blocks], result: dict[str, Any]
) -> None:
    """Writes output_dir from the best checkpoint, and prints the summary."""
    metric = job.training["metric_for_best_model"]
    whole = stored.list_checkpoints(record.storage_path, record.run_names)
    if record.resume_from and not any(checkpoint.path == record.resume_from for checkpoint in whole):
        outside = stored.read_checkpoint(*stored.open_storage(record.resume_from))
        whole = [*([outside] if outside else []), *whole]
    best_stored = stored.best_checkpoint(whole, metric)
    before, best = best_stored.model_states()
    corpus = outputs.Corpus(blocks["corpus"].tables())
    splits: dict[str, outputs.AskedQuestions] = {}
    splits |= {split: outputs.AskedQuestions(blocks[split].tables()) for split in ("eval", "test") if split in blocks}
    folder = Path(job.output_dir)
    with outputs.staged(folder) as staging:
        best_stored.download("model", staging)
        whole[-1].download("trainer_state.json", staging / "trainer_state.json")
        outputs.write_results(staging, job, encoder, before, best, result["metrics"])
        if job.settings.write_predictions:
            for split, asked in splits.items():
                outputs.write_predictions(staging / f"{split}-predictions.jsonl", asked, corpus, best, split)
        record.files = [str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()]
        record.save(job.output_dir)
    outputs.print_summary(job, outputs.compare(splits, corpus, before, best), best)
