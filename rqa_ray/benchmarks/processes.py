"""Runs each measurement in its own process, and takes medians of the rounds; all benchmarks use it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

Figures = dict[str, float]


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a new process, which inherits the environment, and returns its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


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
