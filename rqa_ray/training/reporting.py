"""From rank 0 to the driver: every checkpoint as a report to Ray, progress and notes through a mailbox."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from transformers import TrainerCallback

from rqa_ray.progress import Progress, as_record
from rqa_ray.retriever import distributed
from rqa_ray.training.checkpoints import NOT_EVALUATED, SCORE, score, write_manifest
from rqa_ray.training.trainer import ContrastiveTrainer


@ray.remote(num_cpus=0)
class Mailbox:
    """Rank 0 of each run puts progress in, the driver takes it out and may ask for a stop."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}  # by run
        self.notes: list[str] = []
        self.stop = False
        self.places: dict[str, Any] = {}  # placement group of its workers by run

    def hold(self, run: str, place: Any) -> None:
        """Remembers the placement group of a run's workers."""
        self.places[run] = place

    def place(self, run: str) -> Any:
        """The placement group of a run's workers, once, None where it has none."""
        return self.places.pop(run, None)

    def put(self, run: str, record: dict[str, Any] | None, note: str | None = None) -> bool:
        """Keeps the newest record of a run; returns whether a stop was asked for."""
        if record:
            self.records[run] = record
        if note:
            self.notes.append(note)
        return self.stop

    def take(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The newest record of each run, and the notes since the last call."""
        notes, self.notes = self.notes, []
        return self.records, notes

    def request_stop(self) -> None:
        self.stop = True


class ReportCallback(TrainerCallback):
    """Reports every checkpoint to Ray, with the metrics of its own step, and progress to the mailbox."""

    def __init__(
        self,
        trainer: ContrastiveTrainer,
        mailbox: Any,
        run: str,
        questions_per_step: int,
        report: Callable[..., None] = ray.train.report,
    ) -> None:
        self.trainer, self.mailbox, self.run, self.report = trainer, mailbox, run, report
        self.progress = Progress(questions_per_step=questions_per_step)
        self.metric = trainer.args.metric_for_best_model or ""
        self.stopped = False
        self._stop_asked: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Called by the evaluator with the number of texts encoded."""
        if done < total:
            self.send(phase=f"evaluating at step {self.progress.step}, texts", done=done, total=total)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.progress.quality = f"{self.metric.rsplit('/', 1)[-1]} {metrics[self.metric]:.3f}"
        self.send(phase="step", done=state.global_step, total=state.max_steps)

    def on_log(self, args, state, control, logs, **kwargs):
        self.progress.loss = logs.get("loss", self.progress.loss)

    def on_step_end(self, args, state, control, **kwargs):
        self.send(phase="step", done=state.global_step, total=state.max_steps, step=state.global_step)
        if distributed.any_rank(self._stop_is_asked(), args.device) and state.global_step < state.max_steps:
            # An evaluation that is due at this step is made: after the resume it would never be.
            self.stopped = control.should_training_stop = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        metrics: dict[str, Any] = {"step": state.global_step, SCORE: NOT_EVALUATED}
        if self.trainer.evaluated_step == state.global_step:
            metrics |= self.trainer.results["eval"].metrics
            metrics[SCORE] = score(metrics[self.metric], self.metric, state.global_step)
        checkpoint, beside = None, False
        if state.is_world_process_zero:
            write_manifest(folder, state.global_step)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            beside = self.trainer.saving.due_step == state.global_step
        distributed.barrier()
        self.report(metrics, checkpoint=checkpoint, validation=beside)  # returns when the upload is done
        if state.is_world_process_zero:
            shutil.rmtree(folder)

    def send(self, **changes: Any) -> None:
        """Changes the progress record, and puts it in the mailbox."""
        for name, value in changes.items():
            setattr(self.progress, name, value)
        if distributed.rank() == 0:
            self._stop_asked = self.mailbox.put.remote(self.run, as_record(self.progress))

    def _stop_is_asked(self) -> bool:
        return bool(ray.get(self._stop_asked)) if self._stop_asked is not None else False
