"""The Ray cluster: its environment, connecting to it, and which workers it can hold, now or when it has grown."""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

# Has to be said before Ray is imported; the workers of a private local cluster inherit it. Quiet: one progress line is
# all that a run prints. Fair: on a machine that others use too, a waiting thread must sleep, not spin (a step took 2.7
# times as long), and workers must not be nicer than everybody else. Fast: torch asks the kernel for huge pages, since
# a step's activations are given back and faulted in again at every step (a fifth of its CPU time in small pages); and
# what idle processes of Ray wake up for is left out, each some hundred times a second beside the workers on all cores.
for _name, _value in {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # at the default of 2 s each report takes 2 s
    "RAY_worker_niceness": "0",
    "RAY_event_stats": "0",
    "RAY_num_workers_soft_limit": "0",  # those that have read the data end after
    "RAY_idle_worker_killing_time_threshold_ms": "10000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "THP_MEM_ALLOC_ENABLE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Of Ray Tune: it prints a box even when told to print nothing; `tuning/search.py` handles its signals; trials
    # write their own TensorBoard files, trials.csv has the rest; what a kill may lose of its state (seconds).
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from rqa_ray.autoscaler import nodes_to_come  # noqa: E402
from rqa_ray.errors import InputError  # noqa: E402


@dataclass
class WorkerPlan:
    """The training workers that a run asks for: `num_workers`, or `min_workers` up to so many as nodes come and go."""

    num_workers: int
    cpus: int
    use_gpu: bool
    min_workers: int = 0  # 0: the number is fixed

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker."""
        return {"CPU": self.cpus, "GPU": 1} if self.use_gpu else {"CPU": self.cpus}

    def describe(self) -> str:
        worker = f"{self.cpus} CPU" + (" and 1 GPU" if self.use_gpu else "")
        number = f"{self.min_workers} to {self.num_workers}" if self.min_workers else f"{self.num_workers}"
        return f"{number} worker{'s' * (self.num_workers > 1)} with {worker} each"


def connect() -> str:
    """Connects to the cluster of RAY_ADDRESS (set in jobs), else starts a private local one; says which."""
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if not address:  # nothing will be preempted here, and the watcher is a process of its own
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # The dashboard stays on: Ray Train's cleaner asks it, else a stopped run's workers are never freed.
        local: dict[str, Any] = {} if address else {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        options = {"address": address or "local", "logging_level": "error", "log_to_driver": False, **local}
        try:
            ray.init(**options)
        except ConnectionError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason})") from None
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()  # Ray gives its node 30 s, which a busy machine may take to load it the first time
            ray.init(**options)
    if threading.current_thread() is threading.main_thread():  # Ray's own handler exits with 15
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    nodes, more = _nodes(), _nodes_to_come()
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    kind = f"cluster at {os.environ['RAY_ADDRESS']}" if os.environ.get("RAY_ADDRESS") else "private local cluster"
    here = f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
    growth = f", up to {len(more)} more node{'s' * (len(more) > 1)} from the autoscaler" if more else ""
    return f"{kind}, {here}{growth}"


def has_other_nodes() -> bool:
    """Whether work may run on another node than this one, now or later."""
    return len(_nodes()) > 1 or bool(os.environ.get("RAY_ADDRESS"))


def plan_workers(
    asked: tuple[int, int] | int | None, cpus_per_worker: int | None, use_cpu: bool = False
) -> WorkerPlan:
    """How many workers, with what; one for each GPU where there are GPUs. `asked` may be (at least, at most).

    Raises:
        InputError: the nodes can never hold them, those that the autoscaler may add included.
    """
    nodes, more = _nodes(), _nodes_to_come()
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    use_gpu = any(node.get("GPU", 0) for node in nodes + more) and not use_cpu
    fewest, num_workers = asked if isinstance(asked, tuple) else (0, asked or (max(1, num_gpus) if use_gpu else 1))
    largest = max(int(node.get("CPU", 0)) for node in nodes + more)
    sizes = [cpus_per_worker] if cpus_per_worker else range(largest, 0, -1)
    # As large as the whole group can be; else, where nodes have still to join, as the smallest can.
    for needed in [num_workers, fewest] if fewest else [num_workers]:
        for cpus in sizes:
            plan = WorkerPlan(num_workers, cpus, use_gpu, fewest)
            if sum(_fits(node, plan.resources) for node in nodes + more) >= needed:
                return plan
    smallest = WorkerPlan(fewest or num_workers, cpus_per_worker or 1, use_gpu)
    most = sum(_fits(node, smallest.resources) for node in nodes + more)
    can_add = f", its autoscaler can add {_held(more)}" if more else ""
    raise InputError(
        f"--num_workers {smallest.num_workers}: needs {smallest.describe()}, "
        f"the cluster has nodes of {_held(nodes)}{can_add}; {most} fit"
    )


def _held(nodes: list[dict[str, float]]) -> str:
    kinds = collections.Counter(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return ", ".join(f"{number} x {kind}" if number > 1 else kind for kind, number in kinds.items())


def max_concurrent(plan: WorkerPlan) -> int:
    """How many runs of such a plan the nodes hold beside each other."""
    return sum(_fits(node, plan.resources) for node in _nodes() + _nodes_to_come()) // plan.num_workers


def find_spare(plan: WorkerPlan) -> dict[str, int] | None:
    """What a task beside the workers could have, as options of `ray.remote`; None where they leave nothing.

    A GPU where the workers have one each, else the CPUs that are left on one node.
    """
    nodes = sorted(_nodes(), key=lambda node: node.get("CPU", 0), reverse=True)
    left, best = plan.num_workers, None
    for node in nodes:
        here = min(left, _fits(node, plan.resources))
        left -= here
        cpus = int(node.get("CPU", 0)) - here * plan.cpus
        gpus = int(node.get("GPU", 0)) - here if plan.use_gpu else 0
        if cpus >= 1 and (gpus >= 1 or not plan.use_gpu) and cpus > (best or {"num_cpus": 0})["num_cpus"]:
            best = {"num_cpus": min(cpus, plan.cpus), "num_gpus": 1} if plan.use_gpu else {"num_cpus": cpus}
    return best


def where_evaluated(plan: WorkerPlan, beside: dict[str, int] | None) -> str:
    """A line that says what `--async_eval` came to."""
    if beside:
        what = " and ".join(f"{number} {name[4:-1].upper()}" for name, number in beside.items())
        return f"evaluating beside training, with {what}; step 0 is evaluated before"
    return f"note: --async_eval: {plan.describe()} leave no hardware free; evaluating in the loop"


def _fits(node: dict[str, float], resources: dict[str, float]) -> int:
    return int(min(node.get(name, 0) // amount for name, amount in resources.items()))


def _nodes_to_come() -> list[dict[str, float]]:
    return nodes_to_come() if os.environ.get("RAY_ADDRESS") else []


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
