"""Joins training workers in a process group of torch.

Ray Train's own TorchConfig does so too, but makes Ray's controller import torch before any worker starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from rqa_ray.quick_imports import quick_imports


@dataclass
class ProcessGroup(BackendConfig):
    """Tells Ray Train how to join the workers."""

    timeout_s: int  # how long a rank waits for the others in a collective
    backend: str = ""  # nccl or gloo; Ray's TorchTrainer chooses

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Callable[[], Any]:
        from ray.train.torch.config import (
            TorchConfigContextManager,  # of the workers; the controller never asks for it
        )

        return TorchConfigContextManager


class _Backend(Backend):
    """The part that runs in the controller. It has the workers call the functions of TorchConfig."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        given = size, address, port, backend_config
        ray.get([worker_group.execute_single_async(rank, _join, rank, *given) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        with suppress(GetTimeoutError):  # the process of a rank that hangs is killed after this
            ray.get(left, timeout=int(os.environ.get("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "30")))


def _join(rank: int, size: int, address: str, port: int, config: ProcessGroup) -> None:
    with quick_imports():
        from ray.train.torch import config as of_ray

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    of_ray._set_torch_distributed_env_vars()
    of_ray._setup_torch_process_group(config.backend, rank, size, "env://", config.timeout_s)


def _leave(has_others: bool) -> None:
    from ray.train.torch import config as of_ray

    of_ray._shutdown_torch(destroy_process_group=has_others)
