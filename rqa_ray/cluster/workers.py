"""Plans which training workers the nodes of a cluster can hold, now or after it has grown."""

from __future__ import annotations

import collections
from dataclasses import dataclass

from rqa_ray.cluster.nodes import nodes_now, nodes_to_come
from rqa_ray.errors import InputError


@dataclass
class Workers:
    """The training workers of a run: `num_workers` of them, or as few as `min_workers` while nodes are missing."""

    num_workers: int
    cpus: int
    use_gpu: bool
    min_workers: int = 0  # 0 where the number is fixed

    @property
    def resources(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"CPU": self.cpus, "GPU": 1} if self.use_gpu else {"CPU": self.cpus}

    @property
    def of_a_task(self) -> dict[str, float]:
        """The same, as options of a Ray task."""
        return {"num_cpus": self.cpus, "num_gpus": int(self.use_gpu)}

    def describe(self) -> str:
        worker = f"{self.cpus} CPU" + (" and 1 GPU" if self.use_gpu else "")
        number = f"{self.min_workers} to {self.num_workers}" if self.min_workers else f"{self.num_workers}"
        return f"{number} worker{'s' * (self.num_workers > 1)} with {worker} each"


def plan_workers(asked: tuple[int, int] | int | None, cpus_per_worker: int | None, use_cpu: bool = False) -> Workers:
    """Chooses the number of workers and their resources: one worker for each GPU where there are GPUs.

    `asked` is a number of workers, or (fewest, most).

    Raises:
        InputError: the nodes can never hold the workers, even with all nodes that the autoscaler may start.
    """
    nodes, more = nodes_now(), nodes_to_come()
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    use_gpu = any(node.get("GPU", 0) for node in nodes + more) and not use_cpu
    fewest, num_workers = asked if isinstance(asked, tuple) else (0, asked or (max(1, num_gpus) if use_gpu else 1))
    largest = max(int(node.get("CPU", 0)) for node in nodes + more)
    sizes = [cpus_per_worker] if cpus_per_worker else range(largest, 0, -1)
    # The most CPUs with which all workers fit. While nodes have still to join, the most CPUs with which the fewest
    # workers fit.
    for needed in [num_workers, fewest] if fewest else [num_workers]:
        for cpus in sizes:
            workers = Workers(num_workers, cpus, use_gpu, fewest)
            if sum(_fits(node, workers.resources) for node in nodes + more) >= needed:
                return workers
    smallest = Workers(fewest or num_workers, cpus_per_worker or 1, use_gpu)
    most = sum(_fits(node, smallest.resources) for node in nodes + more)
    can_add = f", its autoscaler can add {_held(more)}" if more else ""
    raise InputError(
        f"--num_workers {smallest.num_workers}: needs {smallest.describe()}, "
        f"the cluster has nodes of {_held(nodes)}{can_add}; {most} fit"
    )


def _held(nodes: list[dict[str, float]]) -> str:
    kinds = collections.Counter(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return ", ".join(f"{number} x {kind}" if number > 1 else kind for kind, number in kinds.items())


def max_concurrent(workers: Workers) -> int:
    """Returns how many runs with such workers fit on the nodes at the same time."""
    return sum(_fits(node, workers.resources) for node in nodes_now() + nodes_to_come()) // workers.num_workers


def find_spare(workers: Workers) -> dict[str, int] | None:
    """Returns the resources that the workers leave free for one task, as options of `ray.remote`.

    Returns None if the workers leave nothing free.

    The task gets a GPU where each worker has one, else the free CPUs of one node.
    """
    nodes = sorted(nodes_now(), key=lambda node: node.get("CPU", 0), reverse=True)
    left, best = workers.num_workers, None
    for node in nodes:
        here = min(left, _fits(node, workers.resources))
        left -= here
        cpus = int(node.get("CPU", 0)) - here * workers.cpus
        gpus = int(node.get("GPU", 0)) - here if workers.use_gpu else 0
        if cpus >= 1 and (gpus >= 1 or not workers.use_gpu) and cpus > (best or {"num_cpus": 0})["num_cpus"]:
            best = {"num_cpus": min(cpus, workers.cpus), "num_gpus": 1} if workers.use_gpu else {"num_cpus": cpus}
    return best


def where_evaluated(workers: Workers, beside: dict[str, int] | None) -> str:
    """Returns a line that says where `--async_eval` evaluates."""
    if beside:
        what = " and ".join(f"{number} {name[4:-1].upper()}" for name, number in beside.items())
        return f"evaluating beside training, with {what}; step 0 is evaluated before"
    return f"note: --async_eval: {workers.describe()} leave no hardware free; evaluating in the loop"


def _fits(node: dict[str, float], resources: dict[str, float]) -> int:
    return int(min(node.get(name, 0) // amount for name, amount in resources.items()))
