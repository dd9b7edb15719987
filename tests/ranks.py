"""Real processes that talk over gloo, for tests of what ranks do together."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# The server of new processes has imported these, so that each costs a fork and not seconds of imports.
PRELOADED = [
    "torch",
    "rqa_ray.evaluation.evaluator",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
]


def run_ranks(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Calls `function(*args)` on each rank of a group and returns the results.

    The function is at a module's top level.

    Ray cannot be imported on the ranks.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(
        _run_rank, (world_size, function, folder, args), nprocs=world_size, start_method="forkserver"
    )
    return [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, function: Callable[..., Any], folder: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group-of-{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    torch.save(function(*args), folder / f"{world_size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
