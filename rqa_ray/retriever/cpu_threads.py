"""Computes pieces of work in threads of their own, where their operations are too small for all threads to share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_own = threading.local()  # the pool of the calling thread, because evaluation calls from several threads
_starting = threading.Lock()
os.register_at_fork(after_in_child=lambda: _own.__dict__.clear())  # a forked process has no threads but its own


def in_threads(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Returns the results of pieces of work that do not depend on each other, in their order; keeps no graph.

    As many threads as torch has take the next piece each. If there are fewer pieces than threads, torch's threads are
    shared out among the pieces.
    """
    threads, is_inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(piece: Piece) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():  # both are settings of a thread
            return work(piece)

    threads_of_each = threads // max(min(threads, len(pieces)), 1)
    if threads_of_each == threads:
        return list(map(alone, pieces))
    # The size does not depend on the number of pieces: a new pool for each token batch would cost time.
    return list(_pool(threads // threads_of_each, threads_of_each).map(alone, pieces))


def _pool(number: int, threads_of_each: int) -> ThreadPoolExecutor:
    """Returns threads in which torch computes with so many threads each; they end with the thread that calls."""
    if getattr(_own, "kind", None) != (number, threads_of_each):
        with _starting:
            before, all_started = torch.get_num_threads(), threading.Barrier(number + 1)
            pool = ThreadPoolExecutor(number, "piece", _compute_with, (threads_of_each,))
            try:
                for _ in range(number):
                    pool.submit(all_started.wait)
                all_started.wait()
            except BaseException:
                all_started.abort()
                raise
            finally:
                torch.set_num_threads(before)  # a thread's setting is the default of threads that start later
        _own.pool, _own.kind = pool, (number, threads_of_each)
    return _own.pool


def _compute_with(threads: int) -> None:
    torch.get_num_threads()  # a thread's first call of torch sets the default, which would replace a setting
    torch.set_num_threads(threads)
