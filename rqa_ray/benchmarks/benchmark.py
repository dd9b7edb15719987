"""Lists the benchmarks by name, with the settings of each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.benchmarks import data, evaluate, gpu, mine, quality, train
from rqa_ray.benchmarks.settings import BenchmarkSettings
from rqa_ray.command_line import parse
from rqa_ray.errors import InputError
from rqa_ray.job_output import JobResult
from rqa_ray.texts import is_none_of

BENCHMARKS: dict[str, tuple[type[BenchmarkSettings], Callable[[Any], str]]] = {
    "train": (train.TrainBenchmark, train.run),  # a training step
    "gpu": (gpu.GpuBenchmark, gpu.run),  # training steps, encoding and kernels on a GPU, in one process
    "data": (data.DataBenchmark, data.run),  # reading files to token rows, and the memory of streaming
    "eval": (evaluate.EvaluationBenchmark, evaluate.run),  # an evaluation from texts to metrics, and the search alone
    "mine": (mine.MineBenchmark, mine.run),  # mining hard negatives
    "quality": (quality.QualityBenchmark, quality.run),  # what recipes of training gain
}


@dataclass
class BenchmarkResult(JobResult):
    """The result of a benchmark."""

    output: str  # JSON file with all figures
    figures: Any  # what is in the file
    table: str

    def describe(self) -> str:
        """Returns lines for a person."""
        return f"{self.table}\nall figures: {self.output}"


def parse_benchmark(words: Sequence[str], about: str | None = None) -> BenchmarkSettings:
    """Returns the settings of the benchmark that the first word names; `about` comes first in `-h`.

    Raises:
        InputError: there is no such benchmark, or unknown names, or values that cannot work.
    """
    name = words[0] if words else "nothing"
    if name in ("-h", "--help"):
        parts = [f"  {part:8}{(kind.__doc__ or '').splitlines()[0]}" for part, (kind, _) in BENCHMARKS.items()]
        print("\n".join([(about or "").strip(), "", *parts, "", "-h after one of these words shows its settings."]))
        raise SystemExit(0)
    if name not in BENCHMARKS:
        raise InputError(f"{name}: no benchmark; {is_none_of(name, list(BENCHMARKS))} (-h lists them)")
    kind = BENCHMARKS[name][0]
    return parse(kind, words[1:], inspect.getdoc(kind))


def benchmark(settings: BenchmarkSettings) -> BenchmarkResult:
    """Measures what the settings ask for, and writes all figures to `settings.output`.

    Raises:
        InputError: a file or the model is wrong, or a peer is not installed.
    """
    table = next(run for kind, run in BENCHMARKS.values() if isinstance(settings, kind))(settings)
    figures = json.loads(Path(settings.output).read_text(encoding="utf-8"))
    return BenchmarkResult(settings.output, figures, table, files=[settings.output])
