"""A training worker that kills its node's Ray process, or itself, at one moment of the run, and writes that to a log.

`python tests/training/faults.py EVENT_LOG FAULT WORDS...` is `jobs/train.py WORDS...` with such workers. FAULT is
`phase@step@rank@victim`; the victim is `raylet` or `worker`. With `notice`, `ray start` gets SIGTERM, as from a cloud
that takes a spot node back, and ends 30 s later; steps and evaluations are slow (`paced.py`).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
from transformers import TrainerCallback

PHASES = {
    "before the first checkpoint": "evaluating",
    "forward": "forward",
    "between forward and backward": "loss",
    "between backward and optimizer": "pre_optimizer_step",
    "between optimizer and the end of the step": "optimizer_step",
    "between steps": "step_begin",
    "between epochs": "epoch_begin",
    "during evaluation": "evaluating",
    "while saving": "saving",
    "while uploading": "uploading",
    "between upload and report": "uploaded",
    "after the last step": "train_end",
    "during the finish": "finishing",
}


class Fault:
    """Happens once in a run: if the log exists, the fault has happened."""

    def __init__(self, log: str, what: str) -> None:
        self.log = Path(log)
        self.phase, step, rank, self.victim = what.split("@")
        self.step, self.rank = int(step), int(rank)
        self.trainer = None

    def at(self, moment: str, step: int | None = None) -> None:
        """Kills the victim if this is the moment; without `step`, the Trainer's step counts."""
        trainer = self.trainer
        if trainer is None or PHASES[self.phase] != moment or self.log.exists():
            return
        here = trainer.state.global_step if step is None else step
        if trainer.args.process_index != self.rank or here != self.step:
            return
        raylet = psutil.Process(os.getppid())
        victim = {"raylet": raylet.pid, "worker": os.getpid(), "notice": raylet.ppid()}[self.victim]
        name = Path(f"/proc/{victim}/comm").read_text().strip()
        event = {"phase": self.phase, "step": self.step, "rank": self.rank, "pid": os.getpid(), "killed": victim}
        with self.log.open("x") as file:
            file.write(json.dumps(event | {"name": name}))
            os.fsync(file.fileno())
        if self.victim == "notice":
            os.kill(victim, signal.SIGTERM)
            return
        os.kill(victim, signal.SIGKILL)
        time.sleep(60)  # the phase goes on until Ray ends this process


class AtSteps(TrainerCallback):
    def __init__(self, fault: Fault) -> None:
        for moment in ("pre_optimizer_step", "optimizer_step", "step_begin", "epoch_begin", "train_end"):
            setattr(self, f"on_{moment}", lambda *_, moment=moment, **__: fault.at(moment))


def train_worker(spec, log: str, what: str):
    """Runs `worker.train_worker` with the fault in it."""
    from rqa_ray.evaluation.evaluator import RetrievalEvaluator
    from rqa_ray.retriever.encoder import Encoder
    from rqa_ray.training import trainer as trainer_module
    from rqa_ray.training import uploads, worker
    from rqa_ray.training.checkpoint_files import StepNote
    from rqa_ray.training.trainer import ContrastiveTrainer

    fault = Fault(log, what)
    if fault.victim == "notice":
        from tests.training import paced

        paced.prepare(str(fault.log.parent))

    def before(owner: type, name: str, moment: str, applies=lambda self: True) -> None:
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            if applies(self):
                fault.at(moment)
            return original(self, *args, **kwargs)

        setattr(owner, name, wrapped)

    def after(owner: type, name: str, moment: str) -> None:
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            fault.at(moment)
            return result

        setattr(owner, name, wrapped)

    def build(*args, **kwargs):
        fault.trainer = original_build(*args, **kwargs)
        fault.trainer.add_callback(AtSteps(fault))
        return fault.trainer

    original_build, worker.build_trainer = worker.build_trainer, build
    before(Encoder, "forward", "forward", lambda encoder: encoder.training)
    after(ContrastiveTrainer, "batch_loss", "loss")
    before(RetrievalEvaluator, "_on_batch", "evaluating")
    original_save = trainer_module.save_evaluations
    trainer_module.save_evaluations = lambda *args: (
        fault.at("saving"),
        original_save(*args),
    )  # model, optimizer are there

    def upload(self, checkpoint, name: str):  # in a thread, while training goes on
        step = StepNote.load(Path(checkpoint.path)).step
        if fault.phase == "while uploading" and step == fault.step and not fault.log.exists():
            target = Path(self.storage.experiment_fs_path) / name / "model"
            target.mkdir(parents=True)
            (target / "model.safetensors").write_bytes(Path(checkpoint.path, "model/model.safetensors").read_bytes())
        fault.at("uploading", step)
        stored = original_upload(self, checkpoint, name)
        fault.at("uploaded", step)
        return stored

    original_upload, uploads.Uploads.upload = uploads.Uploads.upload, upload
    return worker.train_worker(spec)


def finish_worker(spec, log: str, what: str):
    """Runs `evaluation_worker.finish_worker` with the fault in its first evaluation, which is slow."""
    from rqa_ray.evaluation.evaluator import RetrievalEvaluator
    from rqa_ray.retriever import distributed
    from rqa_ray.training import evaluation_worker

    fault, original = Fault(log, what), RetrievalEvaluator._on_batch
    state, args = SimpleNamespace(global_step=fault.step), SimpleNamespace(process_index=distributed.rank())
    fault.trainer = SimpleNamespace(state=state, args=args)

    def slow(self, *args):
        fault.at("finishing")
        time.sleep(3)
        return original(self, *args)

    RetrievalEvaluator._on_batch = slow
    return evaluation_worker.finish_worker(spec)


def main() -> None:
    log, what, *words = sys.argv[1:]
    from rqa_ray.stops import user_errors
    from rqa_ray.training.job import parse_job

    with user_errors():
        job = parse_job(words)
        from rqa_ray.training import train as run

        def loop(spec):
            from tests.training import faults  # the workers' own copy

            return faults.train_worker(spec, log, what)

        run.train_worker = loop
        if what.startswith("during the finish"):
            from rqa_ray.training import finisher

            def finish(spec):
                from tests.training import faults

                return faults.finish_worker(spec, log, what)

            finisher.finish_worker = finish
        run.train(job)


if __name__ == "__main__":
    main()
