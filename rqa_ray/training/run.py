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
from functools import partial
from pathlib import Path
from typing import Any

from rqa_ray.arguments import Job
from rqa_ray.errors import InputError
from rqa_ray.preflight import (  # before Ray: makes it quiet
    WorkerPlan,
    connect,
    find_spare,
    plan_workers,
    where_evaluated,
)
from rqa_ray.retriever.saving import EncoderSettings, find_model_folder

# isort: split
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rqa_ray.data.readers import Blocks, Skipped, read_inputs
from rqa_ray.data.streaming import is_too_large, open_stream
from rqa_ray.data.tokenise import TokeniserSpec
from rqa_ray.evaluation.options import encoder_settings
from rqa_ray.evaluation.predictions import AskedQuestions, Documents, write_predictions
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.retriever.tokenizer import check_model, prefix_note
from rqa_ray.training import checkpoints as stored
from rqa_ray.training import outputs
from rqa_ray.training.checkpoints import Mailbox
from rqa_ray.training.inputs import (
    demo_files,
    input_files,
    micro_batch_size,
    with_global_batch,
)
from rqa_ray.training.report import data_report, has_negatives
from rqa_ray.training.resume import RunRecord, check_output_dir, open_run
from rqa_ray.training.trainer import MODEL_FOLDER, TRAINER_STATE_FILE
from rqa_ray.training.validate import validate
from rqa_ray.training.worker import train_worker
from rqa_ray.whole_files import ALL_ARGS_FILE, read_json, staged

POLL_SECONDS = 0.5
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
    encoder = encoder_settings(model_folder, job.settings)
    note = prefix_note(job.settings.model_name_or_path or "", encoder)
    job.notes.extend([note] if note else [])
    check_output_dir(job)
    check_model(model_folder, encoder, job.settings.trust_remote_code)
    cluster = connect()
    plan = plan_workers(job.settings.num_workers, job.settings.cpus_per_worker, bool(job.training.get("use_cpu")))
    job = with_global_batch(job, plan.num_workers)
    if job.training.get("fp16") and not plan.use_gpu:
        raise InputError("--fp16: needs a GPU; on CPUs choose --bf16 or neither")
    if files is None:
        files = demo_files(job)
    print(f"Ray: {cluster}; {plan.describe()}")
    print(f"model: {job.settings.model_name_or_path}, {encoder.describe()}")
    for note in job.notes:
        print(note)
    if job.training.get("bf16") and not plan.use_gpu and "512" not in torch.backends.cpu.get_cpu_capability():
        print("warning: --bf16 is emulated on this CPU, and slower than fp32")

    spec = TokeniserSpec(model_folder, encoder, job.settings.trust_remote_code)
    job = with_data_mode(job, files["train"], spec)
    skip_bad = job.settings.on_bad_record == "skip"
    stream = open_stream(files.pop("train"), spec, skip_bad) if job.settings.data_mode == "streaming" else None
    blocks = read_inputs(files, spec, skip_bad)
    skipped = [part.skipped() for part in blocks.values() if skip_bad]
    if stream:
        lines = [stream.report(), *data_report(blocks, stream.num_empty, stream.num_chats)]
        skipped = [stream.skipped, *skipped]
        num_rows, some_negatives = int(stream.num_rows.sum()), stream.has_negatives
    else:
        lines = data_report(blocks)
        num_rows, some_negatives = blocks["train"].dataset.count(), has_negatives(blocks["train"])
    print("\n".join(lines))
    micro_batch, lines = micro_batch_size(job, plan.num_workers, num_rows, some_negatives)
    print("\n".join(lines))

    beside = find_spare(plan) if job.settings.async_eval else None
    if job.settings.async_eval:
        print(where_evaluated(plan, beside))

    record = open_run(job)
    bad = Skipped.of(skipped)
    if bad.kinds:
        print(outputs.write_bad_records(Path(job.output_dir), bad.first, bad.counts()))
    print(f"checkpoints in {record.storage_path}")
    config = {
        "settings": vars(job.settings),
        "training": job.training,
        "output_dir": os.path.abspath(job.output_dir),  # workers have another working directory
        "micro_batch": micro_batch,
        "encoder": encoder,
        "model_folder": model_folder,
        "blocks": {name: part.refs for name, part in blocks.items()},
        "windows": stream.serve(job.training.get("data_seed", job.training["seed"]), plan.num_workers * plan.cpus)
        if stream
        else None,
        "cpus": plan.cpus,
        "num_workers": plan.num_workers,
        "cwd": os.getcwd(),
        "use_gpu": plan.use_gpu,
        "resume_from": record.resume_from,
        "beside": beside,
    }
    outcome = fit(job, plan, record, config)
    if outcome["signal"]:
        stop_message(job, outcome)
    finish(job, record, encoder, blocks, outcome["result"])


def with_data_mode(job: Job, train_files: list[str], spec: TokeniserSpec) -> Job:
    """The job with its data mode chosen: as it was before a resume, else by the size of the data."""
    mode: Any = job.settings.data_mode
    if mode == "auto" and job.resume:
        mode = (read_json(Path(job.output_dir) / ALL_ARGS_FILE) or {}).get("data_mode", "auto")
    if mode == "auto":
        mode = "streaming" if is_too_large(train_files, spec) else "resident"
    return replace(job, settings=replace(job.settings, data_mode=mode))


def fit(job: Job, plan: WorkerPlan, record: RunRecord, config: dict[str, Any]) -> dict[str, Any]:
    """Runs the workers to their end; returns rank 0's result, and the signal that stopped them, if one did."""
    # On the driver's node, so that it lives as long as the driver.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    config = {**config, "mailbox": mailbox}
    validation = None
    if config["beside"]:
        validation = ValidationConfig(partial(validate, config=config), ray_remote_kwargs=config["beside"])
    keep = job.training.get("save_total_limit") or 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
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
        validation_config=validation,
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
        print(
            f"error: training failed on rank {rank}: {reason_of(str(failure))}\n{how_to_go_on(job)}", file=sys.stderr
        )
        raise SystemExit(1)
    if outcome["error"]:
        raise outcome["error"]
    if outcome["result"]["failure"]:
        print(f"error: {outcome['result']['failure']}", file=sys.stderr)
        raise SystemExit(1)
    if not outcome["result"]["stopped"]:
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


def reason_of(failure: str) -> str:
    """What a worker died of: of the page that Ray writes about a lack of memory, the one line that counts."""
    lines = [line for line in failure.splitlines() if "running low on memory" in line]
    return f"{lines[0]}; free memory, or lower --max_tokens_per_chunk with --gradient_cache true" if lines else failure


def stop_message(job: Job, outcome: dict[str, Any]) -> None:
    """Says how to go on, and raises Stopped."""
    print(f"stopped after step {outcome['result']['step']}, state saved; {how_to_go_on(job)}")
    raise Stopped(STOP_EXIT_CODES[outcome["signal"]])


def how_to_go_on(job: Job) -> str:
    """The command that resumes this run."""
    words, skip = [], False
    for word in sys.argv:
        is_value, skip = skip and not word.startswith("--"), False
        if word.split("=")[0] in ("--overwrite_output_dir", "--resume_from_checkpoint"):
            skip = "=" not in word
        elif not is_value:
            words.append(word)
    return f"go on in {job.output_dir} with\n  {shlex.join(['python', *words, '--resume_from_checkpoint', 'true'])}"


def finish(
    job: Job, record: RunRecord, encoder: EncoderSettings, blocks: dict[str, Blocks], result: dict[str, Any]
) -> None:
    """Writes output_dir from the best checkpoint, and prints the summary."""
    metric = job.training["metric_for_best_model"]
    whole = stored.list_checkpoints(record.storage_path, record.run_names)
    if record.resume_from and not any(checkpoint.location == record.resume_from for checkpoint in whole):
        outside = stored.read_checkpoint(record.resume_from)
        whole = [*([outside] if outside else []), *whole]
    best_stored = stored.best_checkpoint(whole, metric)
    before, best = best_stored.model_states()
    documents = Documents(blocks["corpus"].tables())
    splits: dict[str, AskedQuestions] = {}
    splits |= {split: AskedQuestions(blocks[split].tables()) for split in ("eval", "test") if split in blocks}
    lines, intervals = outputs.compare(splits, documents, before, best)
    folder = Path(job.output_dir)
    with staged(folder) as staging:
        best_stored.download(MODEL_FOLDER, staging)
        whole[-1].download(TRAINER_STATE_FILE, staging / TRAINER_STATE_FILE)
        beside = stored.list_evaluations(record.storage_path, record.run_names)
        outputs.add_evaluations(staging / TRAINER_STATE_FILE, beside)
        outputs.write_results(staging, job, encoder, before, best, result["metrics"], intervals)
        if job.settings.write_predictions:
            for split, asked in splits.items():
                ranking = best.rankings[f"{split}_scores"], best.rankings[f"{split}_positions"]
                write_predictions(staging / f"{split}-predictions.jsonl", asked, documents.document, *ranking)
        record.files = [str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()]
        record.save(job.output_dir)
    outputs.print_summary(job, lines, best)
