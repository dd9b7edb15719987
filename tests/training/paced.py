"""jobs/train.py and jobs/tune.py with slow steps, an upload that can be slowed, and a clock that can jump.

`python tests/training/paced.py FOLDER JOB WORDS...`; JOB is `train` or `tune`. Rank 0 appends every finished step to
FOLDER/steps. While FOLDER/slow exists, each upload takes longer and says so in FOLDER/slowed. The seconds in
FOLDER/jump are added to the clock of Python in the workers.
"""

import functools
import os
import sys
import time
from pathlib import Path

from transformers import TrainerCallback

STEP_SECONDS = float(os.environ.get("RQA_RAY_STEP_SECONDS", "0.25"))
SLOW_SECONDS = 8.0
TEXTS_SECONDS = float(os.environ.get("RQA_RAY_TEXTS_SECONDS", "0"))  # for some texts of an evaluation


class Pace(TrainerCallback):
    """Makes a step take its time, and then notes it."""

    def __init__(self, folder: str, run: str) -> None:
        self.log, self.run = Path(folder, "steps"), run

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(STEP_SECONDS)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            append(self.log, f"{self.run} {state.global_step}")


def append(log: Path, line: str) -> None:
    """Appends a line to a file that several processes write."""
    with log.open("a") as file:
        file.write(f"{line}\n")


@functools.cache
def prepare(folder: str) -> None:
    """Slows the workers of this process down. A process of Ray may run several trials."""
    from rqa_ray.evaluation.evaluator import RetrievalEvaluator
    from rqa_ray.training import uploads, worker

    let_the_clock_jump(folder)
    build, upload, on_batch = worker.build_trainer, uploads.Uploads.upload, RetrievalEvaluator._on_batch

    def paced(spec, *args, **kwargs):
        trainer = build(spec, *args, **kwargs)
        trainer.add_callback(Pace(folder, spec.run))
        return trainer

    def slowed(self, checkpoint, name):
        if Path(folder, "slow").exists():
            time.sleep(SLOW_SECONDS)
            append(Path(folder, "slowed"), name)
        return upload(self, checkpoint, name)

    def slow_texts(self, *args):
        time.sleep(TEXTS_SECONDS)
        return on_batch(self, *args)

    worker.build_trainer, uploads.Uploads.upload, RetrievalEvaluator._on_batch = paced, slowed, slow_texts


def let_the_clock_jump(folder: str) -> None:
    clock, jump = time.time, Path(folder, "jump")

    def jumping() -> float:
        return clock() + (float(jump.read_text() or 0) if jump.exists() else 0.0)

    jumping.__module__, jumping.__qualname__ = "time", "time"  # so that it can be pickled
    time.time = jumping


def main() -> None:
    folder, job, *words = sys.argv[1:]
    from rqa_ray.stops import user_errors

    def loop(spec):
        from rqa_ray.training.worker import train_worker
        from tests.training import paced  # the workers' own copy

        paced.prepare(folder)
        return train_worker(spec)

    with user_errors():
        if job == "train":
            from rqa_ray.training import train
            from rqa_ray.training.job import parse_job

            train.train_worker = loop
            train.train(parse_job(words))
        else:
            from rqa_ray.tuning import tune
            from rqa_ray.tuning.options import parse_search

            run_trial = tune.run_trial

            def run_paced(values, shared):
                from rqa_ray.tuning import trial

                trial.train_worker = loop
                run_trial(values, shared)

            tune.run_trial = run_paced
            tune.tune(parse_search(words))


if __name__ == "__main__":
    main()
