"""What all benchmarks share: a process for each measurement, and medians of the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

Figures = dict[str, float]


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which inherits the environment."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def summarize(results: dict[str, list[Figures]], own: str) -> dict[str, Figures]:
    """Medians over the rounds by contender, and `times_slower`: the median of this project's ratio to it.

    A contender that ran out of memory has no rounds, and no figures.
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
