"""Runs a loop on Ray Train's workers: in a thread, while the main thread draws the progress line and takes signals."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig

from rqa_ray.cluster.workers import WorkerPlan
from rqa_ray.places import shown
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.evaluation_worker import validate
from rqa_ray.training.job import Job
from rqa_ray.training.mailbox import new_mailbox
from rqa_ray.training.uploads import StorageAway, is_full

POLL_SECONDS = 0.5
RESIZE_SECONDS = 20.0  # between two looks for nodes that more workers could have
STOP_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopped(SystemExit):
    """The run was stopped by a signal, its state saved; `code` is the exit code."""


def torch_trainer(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    plan: WorkerPlan,
    storage_path: str,
    name: str,
    max_failures: int = 0,
    **options: Any,
) -> TorchTrainer:
    """Ray Train's trainer that runs `loop` on the planned workers, and keeps the best checkpoints and the newest."""
    callbacks = options.pop("callbacks", None)
    return TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(plan.min_workers, plan.num_workers) if plan.min_workers else plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker=plan.resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config["training"].get("save_total_limit") or 1,
                checkpoint_score_attribute=stored.SCORE,
                checkpoint_score_order="max",
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=callbacks,
        ),
        torch_config=TorchConfig(timeout_s=config["training"].get("ddp_timeout", 1800)),
        **options,
    )


def fit(
    loop: Callable[[dict[str, Any]], Any],
    job: Job,
    plan: WorkerPlan,
    config: dict[str, Any],
    storage_path: str,
    name: str,
    saves_on_stop: bool = True,
) -> dict[str, Any]:
    """Runs the workers to their end; returns rank 0's result, and the signal that stopped them, if one did.

    Without `saves_on_stop` a signal ends all at once.

    Raises:
        SystemExit: with code 1, a worker failed, or storage is full.
        StorageAway: storage does not answer.
    """
    mailbox = new_mailbox()
    config = {**config, "mailbox": mailbox, "run": name}
    validation = None
    if config.get("beside"):
        validation = ValidationConfig(partial(validate, config=config), ray_remote_kwargs=config["beside"])
    trainer = torch_trainer(loop, config, plan, storage_path, name, job.max_failures, validation_config=validation)
    outcome: dict[str, Any] = {"result": None, "error": None, "signal": None}

    def run() -> None:
        try:
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    def on_signal(number: int, _: Any) -> None:
        if outcome["signal"]:
            os._exit(STOP_EXIT_CODES[signal.Signals(number)])
        if not saves_on_stop:
            print(f"stopped; {how_to_go_on(job)}")
            raise Stopped(STOP_EXIT_CODES[signal.Signals(number)])
        outcome["signal"] = signal.Signals(number)

    # Train would install its own handler on the main thread, which aborts without saving.
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    handlers = {number: signal.signal(number, on_signal) for number in STOP_EXIT_CODES}
    show = ProgressLine()
    try:
        thread.start()
        asked = has_begun = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if outcome["signal"] and not has_begun:  # nothing to save
                stop_message(job, {**outcome, "result": {"step": 0}})
            if outcome["signal"] and not asked:
                asked = True
                mailbox.request_stop.remote()
                show.clear()
                print("stopping: saving the state after the last whole step; again to stop at once", file=sys.stderr)
            has_begun |= draw(show, mailbox, job)
    finally:
        show.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(outcome["error"], WorkerGroupError):
        late = ray.get(mailbox.missing.remote(name, plan.num_workers))
        print(f"error: {reason_of(outcome['error'], late)}\n{how_to_go_on(job)}", file=sys.stderr)
        raise SystemExit(1)
    if isinstance(outcome["error"], ControllerError):  # Ray's own list of checkpoints lies in storage too
        failure, place = outcome["error"].controller_failure, shown(storage_path)
        if is_full(failure):
            print(f"error: {place}: no space left ({failure})\n{how_to_go_on(job)}", file=sys.stderr)
            raise SystemExit(1)
        if isinstance(failure, OSError):
            raise StorageAway(f"{place}: cannot be written ({str(failure).strip()})") from None
    if outcome["error"]:
        raise outcome["error"]
    if outcome["result"]["failure"]:
        print(f"error: {outcome['result']['failure']}", file=sys.stderr)
        raise SystemExit(1)
    if not outcome["result"]["stopped"]:
        outcome["signal"] = None  # it came when the run had ended
    return outcome


def draw(show: ProgressLine, mailbox: Any, job: Job) -> bool:
    """Shows the newest record and prints the workers' notes; returns whether there is a record."""
    try:
        records, notes = ray.get(mailbox.take.remote(), timeout=5)
    except RayError:
        return False
    for note in notes:
        show.clear()
        print(note)
    if not job.training.get("disable_tqdm"):
        show.draw(next((Progress(**record) for record in records.values()), Progress()))
    return bool(records)


def reason_of(error: WorkerGroupError, late: list[str] | None = None) -> str:
    """What the workers died of: the one line that counts where it is known, else Ray's page about it.

    `late` are ranks that others waited for in a collective.
    """
    failures = {rank: str(failure) for rank, failure in sorted(error.worker_failures.items())}
    for failure in failures.values():
        for line in failure.splitlines():
            if "running low on memory" in line:
                return f"{line}; free memory, or lower --max_tokens_per_chunk with --gradient_cache true"
            if any(words in line for words in ("StorageError: ", ": no space left", ": could not be written for")):
                return line.rpartition("StorageError: ")[2]
    if late and any("imed out" in failure for failure in failures.values()):
        return f"{', '.join(late)} did not answer, the other ranks waited for --ddp_timeout"
    rank, failure = next(iter(failures.items()))
    return f"training failed on rank {rank}: {failure}"


def stop_message(job: Job, outcome: dict[str, Any]) -> None:
    """Says how to go on, and raises Stopped."""
    step = outcome["result"]["step"]
    done = f"after step {step}, state saved" if step else "before the first step"
    print(f"stopped {done}; {how_to_go_on(job)}")
    raise Stopped(STOP_EXIT_CODES[outcome["signal"]])


def how_to_go_on(job: Job) -> str:
    """The command that resumes this run."""
    resume_words = job.resume_flag.split()
    words, skip = [], False
    for word in sys.argv:
        is_value, skip = skip and not word.startswith("--"), False
        if word.split("=")[0] in ("--overwrite_output_dir", resume_words[0]):
            skip = "=" not in word
        elif not is_value:
            words.append(word)
    return f"go on in {shown(job.location)} with\n  {shlex.join(['python', *words, *resume_words])}"
