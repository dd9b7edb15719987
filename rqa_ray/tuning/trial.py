"""Runs one trial: the training run of a config, with a report to Ray Tune at each evaluation.

With one worker, the process that Tune starts for a trial trains itself. It then goes on to the next trial with all its
modules loaded. With several workers, the process is a driver that runs a TorchTrainer and takes no CPU from the
workers.

Checkpoints are stored like those of a training run, under a name for each attempt. Tune does not get them, because its
own list of checkpoints may be older than the stored ones. A trial that starts again finds its newest complete
checkpoint itself.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import ray.tune
import torch
from pyarrow import fs
from ray.tune.integration.ray_train import TuneReportCallback

from rqa_ray.cluster.workers import Workers
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Questions
from rqa_ray.data.streaming import Stream
from rqa_ray.evaluation.metrics import question_metrics
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.places import inside, open_location, shown
from rqa_ray.reports.learning_curve import by_question_name
from rqa_ray.retriever.encoder_settings import encoder_settings
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.batch_sizes import micro_batch_size
from rqa_ray.training.checkpoints import SCORE, StoredCheckpoint
from rqa_ray.training.driver import torch_trainer
from rqa_ray.training.finish import checkpoints_kept, score
from rqa_ray.training.job import Job
from rqa_ray.training.loops import train_worker
from rqa_ray.training.mailbox import free_workers
from rqa_ray.training.setup import serve_windows
from rqa_ray.training.spec import TENSORBOARD_FOLDER, WorkerSpec
from rqa_ray.training.trainer import TRAINER_STATE_FILE
from rqa_ray.tuning.budget import Budget

IN_TRIAL = ("train", "eval", "corpus")  # only the winner is evaluated on test questions, so that they select nothing


@dataclass
class Shared:
    """What all trials of a search share; made once."""

    job: Job
    budget: Budget
    workers: Workers
    at_once: int  # trials that run at the same time
    spec: WorkerSpec
    stream: Stream | None
    has_negatives: bool
    root: str  # folder or URI of all checkpoints of the search
    mailbox: str  # name of the mailbox actor
    before: dict[str, StoredCheckpoint]  # the pretrained model, by `encoder_key`

    @property
    def trains_in_process(self) -> bool:
        """Returns whether the process that Tune starts for a trial trains itself."""
        return self.workers.num_workers == 1

    def trial_job(self, values: dict[str, Any]) -> Job:
        return self.budget.job_of(self.job, values)


def encoder_key(job: Job) -> str:
    """Returns a name for a pretrained model with the settings that change its evaluation."""
    chosen = (job.settings.pooling_type, job.settings.similarity)
    return "-".join(["pretrained", *(part for part in chosen if part)])


def run_trial(values: dict[str, Any], shared: Shared) -> None:
    """Trains with the values of one point of the search, and reports to Tune."""
    gc.collect()  # frees what an earlier trial in this process left
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trial = ray.tune.get_context().get_trial_id()
    job, workers = shared.trial_job(values), shared.workers
    reports = Reports(shared.root, trial, shared.budget, shared.budget.batch_of(job), job)
    earlier = reports.newest_intact()
    if earlier:
        # Tune may have been killed before it got this report
        ray.tune.report(reports.of(earlier.path, earlier.filesystem))
    before = shared.before[encoder_key(job)].evaluation()
    num_rows = shared.budget.rows_of(job)
    micro_batch, _ = micro_batch_size(job, workers.num_workers, num_rows, shared.has_negatives)
    told = shared.spec
    logging_dir = inside(job.settings.logging_dir or inside(told.output_dir, TENSORBOARD_FOLDER), trial)
    name = job.training.get("run_name") or os.path.basename(shown(told.output_dir))
    spec = replace(
        told,
        settings=replace(job.settings, logging_dir=logging_dir),
        training=job.training | {"run_name": f"{name}-{trial}"},
        model=replace(told.model, settings=encoder_settings(told.model.folder, job.settings)),
        blocks={name: refs for name, refs in told.blocks.items() if name in IN_TRIAL},
        micro_batch=micro_batch,
        windows=serve_windows(shared.stream, job, workers, shared.at_once) if shared.stream else None,
        memory_sharers=shared.at_once,
        run=trial,
        mailbox=ray.get_actor(shared.mailbox),
        resume_from=earlier.location if earlier else None,
        before=before,
    )
    if shared.trains_in_process:
        result = train_worker(replace(spec, report=reports))
    else:
        free_workers(spec.mailbox, trial)  # those of an earlier attempt, whose process was killed
        callbacks = [ReportsOfWorkers(reports)]
        trainer = torch_trainer(train_worker, spec, workers, shared.root, reports.attempt, callbacks=callbacks)
        result = trainer.fit().return_value
    newest = reports.newest()
    last = reports.of(newest.path, newest.filesystem) if newest else reports.of_nothing(before.metrics)
    last |= {"failure": result.failure, "train_metrics": result.metrics, "train_pairs": num_rows}
    if "train_share" in values:
        last["by_question"] = values_by_question(reports.best(shared.before[encoder_key(job)]), spec)
    ray.tune.report(last)


def values_by_question(best: StoredCheckpoint, spec: WorkerSpec) -> list[float]:
    """Returns the metric of each eval question, as the best checkpoint of a trial finds them; for a loss, nDCG@10."""
    tables = {name: fetch_tables(spec.blocks[name]) for name in ("eval", "corpus")}
    ranked = Documents(tables["corpus"]).passage_ids[best.evaluation().splits["eval"].positions]
    values = question_metrics(ranked, Questions.from_tables(tables["eval"]).golds)
    return values[by_question_name(spec.training["metric_for_best_model"])].tolist()


@dataclass
class Reports:
    """Stores and reports the checkpoints of a trial in Tune's own process, in place of `ray.train.report`."""

    root: str
    trial: str
    budget: Budget
    batch: int
    job: Job

    def __post_init__(self) -> None:
        self.earlier = stored.list_run_names(self.root, f"{self.trial}.")
        self.attempt = f"{self.trial}.{len(self.earlier)}"
        self.saves = 0

    def newest(self) -> StoredCheckpoint | None:
        """Returns the newest complete checkpoint of all attempts."""
        whole = self._whole()
        return whole[-1] if whole else None

    def newest_intact(self) -> StoredCheckpoint | None:
        """Returns the newest complete checkpoint that was not damaged."""
        return stored.newest_intact(self._whole())

    def _whole(self) -> list[StoredCheckpoint]:
        return stored.list_checkpoints(self.root, stored.list_run_names(self.root, f"{self.trial}."))

    def best(self, before: StoredCheckpoint) -> StoredCheckpoint:
        """Returns the best of the pretrained model and the checkpoints of all attempts."""
        return stored.best_checkpoints([before, *self._whole()], self.job.training["metric_for_best_model"], 1)[0]

    def __call__(self, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint, validation: bool = False) -> None:
        filesystem, root = open_location(self.root)
        self.saves += 1  # a step that is saved twice needs two folders: a kill would leave one of both saves' files
        target = f"{root}/{self.attempt}/checkpoint-{metrics['step']:06d}-{self.saves}"
        filesystem.create_dir(target, recursive=True)
        fs.copy_files(checkpoint.path, target, checkpoint.filesystem, filesystem)
        shutil.rmtree(checkpoint.path)
        metric = self.job.training["metric_for_best_model"]
        whole = stored.list_checkpoints(self.root, [*self.earlier, self.attempt])
        number = checkpoints_kept(self.job.settings.finish, self.job.training.get("save_total_limit"))
        best = stored.best_checkpoints(whole, metric, number)
        kept = {target, *(checkpoint.path for checkpoint in best)}
        for checkpoint_there in whole:
            if checkpoint_there.path not in kept:
                filesystem.delete_dir(checkpoint_there.path)
        ray.tune.report(self.of(target, filesystem))

    def of(self, path: str, filesystem: fs.FileSystem) -> dict[str, Any]:
        """Returns what Tune is told about a stored checkpoint."""
        checkpoint = stored.read_checkpoint_at(path, filesystem)
        assert checkpoint is not None
        metric = self.job.training["metric_for_best_model"]
        with filesystem.open_input_stream(f"{path}/{TRAINER_STATE_FILE}") as file:
            history = json.loads(file.read())["log_history"]
        curve = [(entry["step"] * self.batch, entry[metric]) for entry in history if metric in entry]
        return {
            **self._place(checkpoint.step),
            SCORE: score(checkpoint.metrics, metric, checkpoint.step),
            "metrics": checkpoint.metrics,
            "curve": curve,
        }

    def of_nothing(self, before: dict[str, float]) -> dict[str, Any]:
        """Returns what Tune is told about a trial that ended before its first evaluation."""
        metric = self.job.training["metric_for_best_model"]
        return {**self._place(0), SCORE: score(before, metric, 0), "metrics": before, "curve": []}

    def _place(self, step: int) -> dict[str, Any]:
        evaluation = self.budget.place(step, self.batch) if step else 0
        return {"step": step, "pairs": step * self.batch, "evaluation": evaluation}


class ReportsOfWorkers(TuneReportCallback):
    """Reports the checkpoints that Ray Train's workers have stored."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self.reports = reports

    def after_report(self, run_context, metrics, checkpoint):
        super().after_report(run_context, [self.reports.of(checkpoint.path, checkpoint.filesystem)], None)
