"""Runs each measurement in its own process, and takes medians of the rounds; all benchmarks use it."""

from __future__ import annotations

import os
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import psutil

Figures = dict[str, float]


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a new process, which inherits the environment, and returns its result.

    The new process ends when this one ends, also if this one is killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent) as process:
        return process.submit(function, *arguments).result()


def _end_with_parent() -> None:
    threading.Thread(target=_wait_for_the_end_of_the_parent, daemon=True).start()


def _wait_for_the_end_of_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def summarize(results: dict[str, list[Figures]], own: str) -> dict[str, Figures]:
    """Returns medians over the rounds by contender.

    `times_slower` is the median of the ratios of this project's rate to the contender's.

    A contender that ran out of memory has no rounds and no figures.
    """
    summary: dict[str, Figures] = {}
    for name, rounds in results.items():
        if not rounds:
            summary[name] = {}
            continue
        summary[name] = {figure: statistics.median(row[figure] for row in rounds) for figure in rounds[0]}
        ratios = [mine["rate"] / other["rate"] for mine, other in zip(results[own], rounds, strict=True)]
        summary[name]["times_slower"] = statistics.median(ratios)
    return summary


class PeakMemory:
    """Watches the peak memory of this process and its children; of Ray's the object store and spilled objects too."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.bytes = max(self.bytes, sum(self._parts()))

    def _parts(self) -> Iterator[int]:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                yield process.memory_full_info().pss
            except psutil.Error:  # the process has ended
                pass
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        all_of_it, free = (
            part.get("object_store_memory", 0) for part in (ray.cluster_resources(), ray.available_resources())
        )
        yield int(all_of_it - free)
        spilled = Path(ray._private.worker._global_node.get_session_dir_path()).glob("ray_spilled_objects*/*")
        yield sum(path.stat().st_size for path in spilled)
