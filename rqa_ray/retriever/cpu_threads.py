"""Computes pieces of work in threads of their own, where their operations are too small for all threads to share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_own = threading.local()  # the pool of the calling thread, because evaluation calls from several threads


def in_threads(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Returns the results of pieces of work that do not depend on each other, in their order; keeps no graph.

    Each of torch's threads takes the next piece. If there are fewer pieces than threads, the threads share each
    operation instead.
    """
    threads, is_inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    if threads == 1 or len(pieces) < threads:
        return [work(piece) for piece in pieces]

    def alone(piece: Piece) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():  # both are settings of a thread
            return work(piece)

    return list(_pool(threads).map(alone, pieces))


def _pool(threads: int) -> ThreadPoolExecutor:
    """Returns threads in which torch computes with one thread; they end with the thread that calls."""
    if getattr(_own, "threads", 0) != threads:
        all_started = threading.Barrier(threads + 1)
        _own.pool, _own.threads = ThreadPoolExecutor(threads, "piece", _compute_alone), threads
        for _ in range(threads):
            _own.pool.submit(all_started.wait)
        all_started.wait()
        torch.set_num_threads(threads)  # a thread's setting becomes the default of later threads
    return _own.pool


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread's first call of torch sets the default, which would replace a setting
    torch.set_num_threads(1)
