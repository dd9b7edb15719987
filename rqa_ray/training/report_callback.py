"""Reports checkpoints to Ray and progress to the driver, and brings back stops and notices that a node goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.v2._internal.execution.context import get_train_context
from transformers import TrainerCallback

from rqa_ray.errors import first_line
from rqa_ray.places import push_folder
from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.training.checkpoints import NOT_EVALUATED, SCORE, write_manifest
from rqa_ray.training.finish import score
from rqa_ray.training.trainer import ContrastiveTrainer

SLOW_RATIO = 1.5
LONG_STEP_SECONDS = 1.0  # after a stop, a longer step is given up, a shorter one is finished
POLL_SECONDS = 0.5  # between two looks for a stop in a long step
LAST_SAVE_SECONDS = 10.0  # for the last save before a node is taken away, beside a step and an upload


class ReportCallback(TrainerCallback):
    """A callback of the Trainer: reports every checkpoint to Ray with the metrics of its own step, and obeys a stop.

    Before a node is taken away with notice, the callback saves the state and, with `may_leave`, ends the training, so
    that no step is made that would be lost. It sends progress to the mailbox. `report` takes metrics, checkpoint and
    validation like `ray.train.report`, and deletes the local checkpoint.
    """

    def __init__(
        self,
        trainer: ContrastiveTrainer,
        mailbox: Any,
        run: str,
        questions_per_step: int,
        report: Callable[..., None],
        watches_preemption: bool = False,
        may_leave: bool = False,
    ) -> None:
        self.trainer, self.mailbox, self.run, self.report = trainer, mailbox, run, report
        self.progress = Progress(questions_per_step=questions_per_step)
        self.metric = trainer.args.metric_for_best_model or ""
        self.watches_preemption, self.may_leave = watches_preemption, may_leave
        self.stopped = False
        self._saves = 0
        self._slow_ranks: set[int] = set()
        self._stop_asked: Any = None
        self._looking = threading.Lock()  # several threads of an evaluation look for a stop
        self._asked_at = self._step_began = time.monotonic()
        self._step_seconds = 0.0  # of the last step
        self._saved_at_notice = self._saved_at_last = False
        trainer.interrupts.is_asked = self.has_to_give_up
        trainer.interrupts.watching = True  # true until a step has proved to be short

    def on_train_begin(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Takes the number of encoded texts; the evaluator calls it."""
        if done < total:
            self.send(phase=f"{self.trainer.doing} at step {self.progress.step}, texts", done=done, total=total)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.progress.quality = f"{self.metric.rsplit('/', 1)[-1]} {metrics[self.metric]:.3f}"
        self.send(phase="step", done=state.global_step, total=state.max_steps)

    def on_log(self, args, state, control, logs, **kwargs):
        self.progress.loss = logs.get("loss", self.progress.loss)
        if "loss" in logs and args.device.type == "cpu":  # on a GPU, work is only queued, so its time says nothing
            self._look_for_a_slow_rank()

    def _look_for_a_slow_rank(self) -> None:
        """Warns once about a rank that takes much longer to encode than the others, which wait for it."""
        seconds = distributed.gather(torch.tensor([self.trainer.interrupts.worked]))
        self.trainer.interrupts.worked = 0.0
        slowest, ratio = int(seconds.argmax()), float(seconds.max() / seconds.median().clamp(min=1e-9))
        if ratio > SLOW_RATIO and seconds.max() > LONG_STEP_SECONDS and slowest not in self._slow_ranks:
            self._slow_ranks.add(slowest)
            if distributed.rank() == 0:
                ratio_said = f"takes {ratio:.1f} times as long to encode its share as the others, which wait for it"
                self.mailbox.tell_of_rank.remote(self.run, slowest, ratio_said)

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)
        self._step_seconds = time.monotonic() - self._step_began
        is_long = self._step_seconds > LONG_STEP_SECONDS
        is_new = self._notice() is not None and not self._saved_at_notice
        flags = [self.is_stop_asked(), is_long, is_new, self._is_time_to_leave()]
        is_stop, self.trainer.interrupts.watching, is_new, is_last = distributed.any_ranks(flags, args.device)
        if is_stop or (is_last and self.may_leave):
            self.stopped = control.should_training_stop = control.should_save = True
            self.trainer.schedule.put_off(state.global_step, control)
        elif is_new or is_last:  # at once, because a node may go sooner than it says
            control.should_save = self._saved_at_notice = True
            self._saved_at_last |= is_last

    def _notice(self) -> Any:
        """Returns what Ray has told this rank about nodes that will be taken away; None if nothing.

        `ray.train.get_preemption_info` would wait for the other ranks.
        """
        return get_train_context().preemption_context.preemption_info if self.watches_preemption else None

    def _is_time_to_leave(self) -> bool:
        """Returns whether there is just enough time left for the last save before a node is taken away."""
        notice = self._notice()
        if notice is None or notice.deadline_ms is None or self._saved_at_last:
            return False
        needed = LAST_SAVE_SECONDS + self._step_seconds + getattr(self.report, "seconds", 0.0)
        return time.time() + needed > notice.deadline_ms / 1000

    def has_to_give_up(self) -> bool:
        """Returns whether this rank gives up a long step or an evaluation, after a stop or before its node goes."""
        return self.is_stop_asked() or (self.may_leave and self._is_time_to_leave())

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped:
            self.trainer.schedule.put_off(state.global_step, control)

    def on_save(self, args, state, control, **kwargs):
        step, schedule = state.global_step, self.trainer.schedule
        metrics: dict[str, Any] = {"step": step, SCORE: NOT_EVALUATED}
        if schedule.is_evaluated_here(step):
            metrics |= self.trainer.found.metrics_of("eval")
            metrics[SCORE] = score(metrics, self.metric, step)
        checkpoint = None
        if state.is_world_process_zero:
            # A name of its own: the Trainer may save the same step again, while this folder is uploaded and deleted.
            self._saves += 1
            folder = Path(args.output_dir) / f"save-{self._saves}"
            (Path(args.output_dir) / f"checkpoint-{step}").rename(folder)
            write_manifest(folder, step)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        distributed.barrier()
        self.report(metrics, checkpoint=checkpoint, validation=checkpoint is not None and schedule.beside_step == step)

    def send(self, **changes: Any) -> None:
        """Changes the progress record and puts it into the mailbox."""
        for name, value in changes.items():
            setattr(self.progress, name, value)
        if distributed.rank() == 0:
            self.mailbox.put.remote(self.run, as_record(self.progress))

    def is_stop_asked(self) -> bool:
        """Returns whether a stop was asked for, as far as this rank knows; does not wait for an answer."""
        with self._looking:
            if self._stop_asked is not None:
                answered, _ = ray.wait([self._stop_asked], timeout=0)
                if answered and ray.get(answered[0]):
                    return True
                self._stop_asked = None if answered else self._stop_asked
            if self._stop_asked is None and time.monotonic() - self._asked_at > POLL_SECONDS:
                self._stop_asked, self._asked_at = self.mailbox.is_stopping.remote(), time.monotonic()
            return False


class PushLogs(TrainerCallback):
    """Copies TensorBoard files to a URI with every checkpoint; used if the output is no folder."""

    def __init__(self, folder: str, location: str, tell: Callable[[str], None]) -> None:
        self.folder, self.location, self.tell = folder, location, tell

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero and Path(self.folder).is_dir():
            try:
                push_folder(self.folder, self.location)
            except OSError as error:  # the next copy brings all files
                self.tell(f"warning: TensorBoard files were not copied ({first_line(error)})")

    on_train_end = on_save
