"""Runs the training workers from the driver.

Ray Train runs in a thread. The main thread draws the progress line and takes signals.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import ray
import ray.train
from ray.exceptions import RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.validation_config import ValidationConfig

from rqa_ray.cluster.workers import Workers
from rqa_ray.credentials import mask_error
from rqa_ray.places import shown, storage_for_ray
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.texts import command
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.evaluation_worker import evaluate_beside
from rqa_ray.training.finish import checkpoints_kept
from rqa_ray.training.job import Job
from rqa_ray.training.mailbox import free_workers, new_mailbox
from rqa_ray.training.process_group import ProcessGroup
from rqa_ray.training.reasons import is_hanging, memory_problem, reason_of, reason_of_loss, wrong_input
from rqa_ray.training.spec import WorkerResult, WorkerSpec
from rqa_ray.training.uploads import StorageAway, is_full

POLL_SECONDS = 0.5
SHORTEST_HANG_SECONDS = 30  # a busy worker may answer late
HANG_VARIABLE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
HANG_OF_USER = os.environ.get(HANG_VARIABLE)  # before this file sets the variable for its first run
RESIZE_SECONDS = 20.0  # between two looks for new nodes that could hold more workers
# Ray Train starts an actor for each. The first serves data sets to workers, which here read none. The second frees the
# workers of a controller that was killed, if a dashboard is there; `mailbox.free_workers` needs none.
UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
STOP_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopped(SystemExit):
    """Raised after a signal stopped the run and its state was saved; `code` is the exit code of the process."""


class LeanTrainer(TorchTrainer):
    """Ray's TorchTrainer without the actors that no run here uses."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]


def torch_trainer(
    loop: Callable[[WorkerSpec], WorkerResult],
    spec: WorkerSpec,
    workers: Workers,
    storage_path: str,
    name: str,
    max_failures: int = 0,
    **options: Any,
) -> TorchTrainer:
    """Builds Ray Train's trainer, which runs `loop` on the workers and keeps the best and the newest checkpoints."""
    callbacks = options.pop("callbacks", None)
    timeout = spec.training.get("ddp_timeout", 1800)
    # Ray's controller asks each worker for its state, and by default waits 10 minutes for a worker that hangs.
    os.environ[HANG_VARIABLE] = HANG_OF_USER or str(max(SHORTEST_HANG_SECONDS, min(timeout, 600)))
    return LeanTrainer(
        _run_loop,
        train_loop_config={"loop": loop, "spec": spec},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers) if workers.min_workers else workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            **storage_for_ray(storage_path),
            # The ranks end by themselves before a node goes away (`report_callback.py`), if they get notice in time.
            # Ray's other options for a node that goes away do not fit DDP, which needs all ranks in every step.
            # `relax_collectives_on_preemption` lets the other ranks leave a collective before the rank of that node,
            # which then waits there for ever, and the others wait for it in DDP: the save at the notice would not be
            # made. With `preemption_grace_s`, the others are alive when the node is gone. Their error in DDP comes
            # before Ray knows why, and would count as a failure. `max_preemption_failures` has no limit by default.
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=checkpoints_kept(spec.settings.finish, spec.training.get("save_total_limit")),
                checkpoint_score_attribute=stored.SCORE,
                checkpoint_score_order="max",
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=callbacks,
        ),
        torch_config=ProcessGroup(timeout),  # type: ignore[arg-type]
        **options,
    )


def _run_loop(config: dict[str, Any]) -> WorkerResult:
    """Calls the loop in a worker, with the dict that Ray Train hands to it."""
    try:
        return config["loop"](config["spec"])
    except Exception as error:
        mask_error(error)
        raise


@dataclass(frozen=True)
class Outcome:
    """The result of a run of the workers."""

    result: WorkerResult
    stopped_by: signal.Signals | None  # the signal that stopped the run, if any
    starting: float  # how long the workers took to start the last time (seconds)

    @property
    def has_left(self) -> bool:
        """Whether the workers have saved their state and ended, because a node is taken away."""
        return self.result.stopped and self.stopped_by is None


def fit(
    loop: Callable[[WorkerSpec], WorkerResult],
    job: Job,
    workers: Workers,
    spec: WorkerSpec,
    storage_path: str,
    name: str,
    saves_on_stop: bool = True,
) -> Outcome:
    """Runs the workers to their end. Without `saves_on_stop`, a signal ends the run at once.

    Raises:
        SystemExit: a worker failed, or storage is full; the code is 1, or the code of a signal that came before.
        StorageAway: the storage does not answer.
    """
    mailbox = new_mailbox()
    spec = replace(spec, mailbox=mailbox, run=name)
    validation = None
    if spec.spare:
        validation = ValidationConfig(partial(evaluate_beside, spec=spec), ray_remote_kwargs=spec.spare)
    trainer = torch_trainer(loop, spec, workers, storage_path, name, job.max_failures, validation_config=validation)
    results: list[WorkerResult] = []
    errors: list[BaseException] = []
    signals: list[signal.Signals] = []

    def run() -> None:
        try:
            results.append(trainer.fit().return_value)
        except BaseException as error:  # the main thread raises it
            errors.append(error)

    def on_signal(number: int, _: Any) -> None:
        if signals:
            os._exit(STOP_EXIT_CODES[signal.Signals(number)])
        if not saves_on_stop:
            print(f"stopped; {how_to_go_on(job)}")
            raise Stopped(STOP_EXIT_CODES[signal.Signals(number)])
        signals.append(signal.Signals(number))

    # On the main thread, Ray Train would install its own signal handler, which ends the run without saving.
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    handlers = {number: signal.signal(number, on_signal) for number in STOP_EXIT_CODES}
    show = ProgressLine()
    try:
        thread.start()
        asked = has_begun = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if signals and not has_begun:  # nothing is trained yet, so there is nothing to save
                stop_message(job, 0, signals[0])
            if signals and not asked:
                asked = True
                mailbox.request_stop.remote()
                show.clear()
                print(
                    "stopping: saving the state after the last finished step; a second signal stops at once",
                    file=sys.stderr,
                )
            has_begun |= draw(show, mailbox, job)
    finally:
        show.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if errors:
        with suppress(RayError):
            free_workers(mailbox, name)
        code = STOP_EXIT_CODES[signals[0]] if signals else 1
        _raise(errors[0], code, job, workers, mailbox, name, storage_path)
    result = results[0]
    if result.failure:
        print(f"error: {result.failure}", file=sys.stderr)
        raise SystemExit(1)
    # A signal that came after the end of the run did not stop it.
    stopped_by = signals[0] if signals and result.stopped else None
    return Outcome(result, stopped_by, ray.get(mailbox.starting.remote(name)))


def _raise(
    error: BaseException, code: int, job: Job, workers: Workers, mailbox: Any, name: str, storage_path: str
) -> NoReturn:
    """Ends the program after Ray Train gave up, with one line on stderr where the reason is known."""
    if isinstance(error, WorkerGroupError):
        wrong = wrong_input(error)
        if wrong:  # and would be as wrong again, so there is no advice to go on
            print(f"error: {wrong}", file=sys.stderr)
            raise SystemExit(code)
        hanging = [rank for rank, failure in error.worker_failures.items() if is_hanging(failure)]
        late = ray.get(mailbox.missing.remote(name, workers.num_workers, hanging))
        print(f"error: {reason_of(error, late)}\n{how_to_go_on(job)}", file=sys.stderr)
        raise SystemExit(code)
    if isinstance(error, ControllerError):  # Ray writes its own list of checkpoints to storage too
        failure, place = error.controller_failure, shown(storage_path)
        if is_full(failure):
            print(f"error: {place}: no space left ({failure})\n{how_to_go_on(job)}", file=sys.stderr)
            raise SystemExit(code)
        if isinstance(failure, OSError):
            raise StorageAway(f"{place}: cannot be written ({str(failure).strip()})") from None
        if isinstance(failure, RayError):  # such as the loss of a node while the workers start
            error = failure
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):  # such as the loss of the driver's node
        why = memory_problem(str(error)) or f"Ray lost the run: {reason_of_loss(error)}"
        print(f"error: {why}\n{how_to_go_on(job)}", file=sys.stderr)
        raise SystemExit(code)
    raise error


def draw(show: ProgressLine, mailbox: Any, job: Job) -> bool:
    """Draws the progress line and prints the workers' notes; returns whether a worker has reported progress."""
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


def stop_message(job: Job, step: int, stopped_by: signal.Signals) -> NoReturn:
    """Prints how to resume the run, and raises Stopped."""
    done = f"after step {step}, state saved" if step else "before the first step"
    print(f"stopped {done}; {how_to_go_on(job)}")
    raise Stopped(STOP_EXIT_CODES[stopped_by])


def how_to_go_on(job: Job) -> str:
    """Returns the command that resumes this run, or the keyword argument where the run was started from Python."""
    resume_words = job.resume_flag.split()
    if not job.command:
        return f"go on in {shown(job.location)} with {resume_words[0].lstrip('-')}=True"
    words, skip = [], False
    for word in job.command:
        is_value, skip = skip and not word.startswith("--"), False
        if word.split("=")[0] in ("--overwrite_output_dir", resume_words[0]):
            skip = "=" not in word
        elif not is_value:
            words.append(word)
    return f"go on in {shown(job.location)} with\n  {command(*words, *resume_words)}"
