"""Runs training and searches under faults, one after the other, until the time is over.

`python -m tests.training.soak FOLDER MINUTES SEED WORDS...` needs its own namespaces for processes and mounts
(`ALONE` is what to put before the command): so it sees all of its processes and no others, and its /dev/shm is empty.
WORDS are the flags of a training run. The first job of each kind is undisturbed, and the others have to end like it.
FOLDER/report.json is the result, FOLDER/events.jsonl says what happened when.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from safetensors.torch import load_file

from tests.nodes import ROOT, Nodes
from tests.training.soak_faults import ENDS_THE_JOB, FAULTS, Missed, until
from tests.training.soak_watch import count, equal, used

ALONE = [
    *"unshare --mount --pid --fork --mount-proc --kill-child sh -c".split(),
    'mount -t tmpfs none /dev/shm && "$@"; exit $?',
    "sh",
]
T = TypeVar("T")
STEPS = 160
KINDS = {
    "train": "--num_workers 2 --cpus_per_worker 1 --per_device_train_batch_size 4 --async_eval".split(),
    "search": "--scheduler none --num_samples 3 --max_concurrent_trials 2 --search_alg grid".split()
    + "--tune_learning_rate 1e-3 2e-3 4e-3".split(),
}
RESUME = {"train": ["--resume_from_checkpoint", "true"], "search": ["--resume"]}
WORKERS = {"train": "RayTrainWorker", "search": "ImplicitFunc"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    # A silent node is noticed after 20 s, and a slow start is waited for, because the machine may be busy.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
MISSED = " (missed)"
NODES = (2, 2)  # two with two CPUs each; one is enough for the workers, the evaluation beside them needs both


@dataclass
class Round:
    """A job from its first start to its end, and what it has left."""

    kind: str
    faults: list[str] = field(default_factory=list)
    starts: int = 1
    seconds: float = 0.0
    is_equal: bool | None = None
    steps_repeated: int = 0
    after: dict[str, float] = field(default_factory=dict)


class Soak:
    def __init__(self, folder: Path, seed: int, words: list[str]) -> None:
        self.folder, self.random, self.words = folder, random.Random(seed), words
        self.storage, self.scratch = folder / "place/storage", folder / "tmp"
        self.storage.mkdir(parents=True)
        self.scratch.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(folder / "place")], check=True)
        self.storage.mkdir()
        self.struck: list[dict] = []
        self.leaks: list[str] = []
        self.unexpected: list[str] = []
        self.rounds: list[Round] = []
        self.expected: dict[str, object] = {}
        self.queue: list[str] = []
        self.clusters, self.kind = 0, ""
        self.nodes: Nodes
        self.job: subprocess.Popen

    def new_cluster(self) -> None:
        if self.clusters:
            self.nodes.stop()
        self.clusters += 1

        self.nodes = again(lambda: Nodes(TMPDIR=str(self.scratch), **ENVIRONMENT))
        self.refill()

    def refill(self) -> None:
        again(lambda: self.nodes.fill(*NODES))

    def workers(self) -> list[psutil.Process]:
        """Returns the processes that train."""
        named = [(process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
        return [process for process, name in named if name.startswith("ray::") and WORKERS[self.kind] in name]

    def a_worker(self) -> psutil.Process:
        found = self.workers()
        if not found:
            raise Missed("no worker")
        return self.random.choice(found)

    def a_node(self) -> subprocess.Popen:
        return self.random.choice([node for node in self.nodes.processes[1:] if node.poll() is None])

    def said(self) -> str:
        return self.log.read_text()

    def steps(self) -> list[str]:
        log = self.folder / "steps"
        return log.read_text().splitlines() if log.exists() else []

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Returns the steps and folders of the complete checkpoints of the job, the newest last."""
        from rqa_ray.training.checkpoints import read_checkpoint

        whole = [read_checkpoint(str(path.parent)) for path in self.storage.rglob("manifest.json")]
        return sorted((one.step, Path(one.path)) for one in whole if one and one.step)

    def run(self, kind: str, with_faults: bool = True) -> None:
        self.kind, done = kind, Round(kind)
        began = time.monotonic()
        (self.folder / "steps").unlink(missing_ok=True)
        self.log = self.folder / f"{len(self.rounds):03}-{kind}.log"
        self.start([])
        left = self.random.randint(2, 4) if with_faults else 0
        while not self.ends(done):
            if left and self.is_training():
                left -= 1
                self.strike(done)
        done.seconds = round(time.monotonic() - began)
        steps = self.steps()
        numbers = [line.split()[-1] for line in steps] if kind == "train" else steps
        done.steps_repeated = len(numbers) - len(set(numbers))
        found = self.result()
        if not with_faults:
            self.expected[kind] = found
        done.is_equal = equal(found, self.expected[kind])
        done.after = self.watch()
        self.rounds.append(done)
        self.note(**asdict(done))
        for place in (self.storage, self.folder / "out"):
            subprocess.run(["rm", "-rf", str(place)], check=True)
        self.storage.mkdir()

    def start(self, more: list[str]) -> None:
        words = [
            *self.words,
            "--max_steps",
            str(STEPS),
            "--eval_steps",
            "20",
            "--logging_steps",
            "20",
            "--max_failures",
            "100",
        ]
        words += ["--output_dir", str(self.folder / "out"), "--storage_path", str(self.storage), *KINDS[self.kind]]
        command = [sys.executable, "-u", "-m", "tests.training.paced", str(self.folder)]
        with self.log.open("a") as log:
            self.job = subprocess.Popen(
                [*command, "tune" if self.kind == "search" else "train", *words, *more],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.nodes.environment,
            )
        self.marked = len(self.steps())

    def ends(self, done: Round) -> bool:
        """Looks for the end of the job; starts a job again that a fault has ended."""
        time.sleep(0.2)
        code = self.job.poll()
        if not code:
            return code == 0
        if not (done.faults and done.faults[-1].removesuffix(MISSED) in ENDS_THE_JOB) or done.starts > 20:
            self.unexpected.append(f"{done.kind} ended with {code} after {done.faults}: {self.said()[-1500:]}")
            self.note(unexpected=self.unexpected[-1])
            assert done.starts < 20 and self.rounds, self.unexpected
        done.starts += 1
        self.start(RESUME[self.kind])
        return False

    def is_training(self) -> bool:
        """Returns whether the job has gone on since the last fault, after some seconds more."""
        if len(self.steps()) <= self.marked + 2:
            return False
        return not until(lambda: self.job.poll() is not None, self.random.uniform(0, 25))

    def strike(self, done: Round) -> None:
        if not self.queue:
            self.queue = self.random.sample(sorted(FAULTS), len(FAULTS))
        name = self.queue.pop(0)
        done.faults.append(name)
        began = time.monotonic()
        try:
            proof = FAULTS[name](self)
            self.struck.append({"fault": name, "kind": self.kind, "proof": proof})
            step = (self.steps() or ["0"])[-1]
            self.note(fault=name, job=self.kind, step=step, took=round(time.monotonic() - began), proof=proof)
        except (Missed, psutil.NoSuchProcess, StopIteration) as error:
            done.faults[-1] = name + MISSED
            self.queue.append(name)
            self.note(missed=name, why=repr(error))
        self.marked = len(self.steps())

    def result(self) -> object:
        """Returns the weights that the job has left, and its results."""
        out = self.folder / "out"
        found = {"model": load_file(out / "model.safetensors")}
        if self.kind == "train":
            step, folder = self.checkpoints()[-1]
            found |= {"last": load_file(folder / "model/model.safetensors"), "step": step}
            results = json.loads((out / "eval_results.json").read_text())
            found["results"] = {name: value for name, value in results.items() if "latency" not in name}
        else:
            with (out / "trials.csv").open() as file:
                rows = sorted(csv.DictReader(file), key=lambda row: float(row["learning_rate"]))
            kept = [name for name in rows[0] if name.startswith(("eval_", "state", "learning_rate", "best_step"))]
            found["rows"] = [[row[name] for name in kept if "latency" not in name] for row in rows]
        return found

    def watch(self) -> dict[str, int]:
        """Counts what is there after a round, when its workers have had time to end; notes what should not be."""
        if not until(lambda: not self.workers(), 60):
            self.leaks += [f"{self.kind}: {' '.join(process.cmdline())[:60]}" for process in self.workers()]
        counted = count(self.nodes) | {"cluster": self.clusters}
        counted["folders left in TMPDIR"] = len(list(self.scratch.glob("rqa_ray-*")))
        self.leaks += [
            f"{self.kind}: {counted[name]} {name}" for name in ("placement groups", "actors") if counted[name]
        ]
        return counted

    def note(self, **what: object) -> None:
        line = json.dumps({"at": time.strftime("%H:%M:%S"), **what}, default=str)
        print(line, flush=True)
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(line + "\n")

    def end(self) -> None:
        self.nodes.stop()
        self.leaks += [f"at the end: {' '.join(process.cmdline())[:80]}" for process in self.nodes.left()]
        if used("/dev/shm"):
            self.leaks.append(f"/dev/shm: {os.listdir('/dev/shm')}")
        self.report()

    def report(self) -> None:
        report = {
            "struck": dict(Counter(one["fault"] for one in self.struck)),
            "rounds": [asdict(one) for one in self.rounds],
            "unequal": [number for number, one in enumerate(self.rounds) if not one.is_equal],
            "unexpected": self.unexpected,
            "leaks": self.leaks,
        }
        (self.folder / "report.json").write_text(json.dumps(report, indent=2))


def again(start: Callable[[], T]) -> T:
    """Starts nodes, in several attempts: on a busy machine, a part of Ray's node may wait in vain for another part."""
    for _ in range(8):
        with suppress(AssertionError):
            return start()
    return start()


def main() -> None:
    folder, minutes, seed, *words = sys.argv[1:]
    soak = Soak(Path(folder), int(seed), words)
    soak.new_cluster()
    left = 60 * float(minutes)
    for number in itertools.count():
        kind = "search" if number % 4 == 3 else "train"
        if kind not in soak.expected:
            soak.run(kind, with_faults=False)
        began = time.monotonic()
        soak.run(kind)
        left -= time.monotonic() - began
        soak.report()
        if left <= 0:
            return soak.end()


if __name__ == "__main__":
    main()
