"""Measures what training gains: recipes x data sets x seeds, with paired tests.

Every run encodes the same number of texts in training. The eval questions choose the weights of the hybrids; nothing
else is chosen here. Runs that are in the output file already are not made again.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import transformers

from rqa_ray.benchmarks.quality_data import BUILT_IN, DataSet, Values, read_data_set
from rqa_ray.benchmarks.quality_peers import PEERS, train_peer
from rqa_ray.benchmarks.quality_report import QualityReport
from rqa_ray.benchmarks.quality_runs import GIVEN, OWN, Base, Ranked, Setup, rank_base, train_own
from rqa_ray.benchmarks.settings import BenchmarkSettings
from rqa_ray.errors import InputError, need_extra
from rqa_ray.fields import ABOVE_0, BATCHES, DATA, LOSS, MEASUREMENT, STEPS, Check, at_least
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.texts import duration

REFERENCE = "in-batch"  # the recipe that the others are compared with
SEEDS = (1, 2, 3)
RECIPES = (*OWN, *PEERS)


@dataclass(kw_only=True)
class QualityBenchmark(BenchmarkSettings):
    """Measures what training gains, by recipe.

    usage:   python jobs/benchmark.py quality [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py quality --output quality.json --recipes in-batch mined --seeds 1 2
    """

    data: list[str] | None = DATA.path(
        None,
        "builtin, or folders of train*, eval*, test* and documents*; FOLDER:300 trains on 300 questions.",
        unset=BUILT_IN,
    )
    recipes: list[str] | None = LOSS.setting(
        None,
        "Recipes to compare.",
        Check(lambda value: value in RECIPES, f"one of {', '.join(RECIPES)}"),
        unset="all that are installed",
        metavar="NAME ...",
    )
    seeds: list[int] | None = MEASUREMENT.setting(
        None, "One run of each recipe for each seed.", at_least(0), unset="1 2 3"
    )
    steps: int = STEPS.setting(36, "Steps of the recipe in-batch; the others encode as many texts.", at_least(1))
    batch_size: int = BATCHES.setting(64, "Questions of a step.", at_least(2))
    learning_rate: float = STEPS.setting(1e-4, "Peak learning rate.", ABOVE_0)
    temperature: float = LOSS.setting(0.05, "Divides the scores.", ABOVE_0)
    finish: bool = LOSS.setting(True, "Also choose a model as --finish merge does, for each of this project's runs.")
    bf16: bool = BATCHES.setting(False, "Train and evaluate in bf16.")


def run(settings: QualityBenchmark) -> str:
    """Makes the runs that are missing, writes all figures after each, and returns tables.

    Raises:
        InputError: a file or the model is wrong, the output file has figures of other settings or files, or a
            package is missing.
    """
    need_extra("jobs/benchmark.py quality", "bm25", "bm25s")
    has_peers = bool(importlib.util.find_spec("datasets"))
    recipes = settings.recipes or [*OWN, *(PEERS if has_peers else [])]
    if not has_peers and any(recipe in PEERS for recipe in recipes):
        raise InputError("--recipes: sentence-transformers trains with the package datasets: pip install datasets")
    transformers.utils.logging.set_verbosity_error()
    folder = find_model_folder(settings.model_name_or_path)
    model = ModelSpec(folder, read_settings(folder, max_seq_length=settings.max_seq_length))
    setup = Setup(model, settings.batch_size, settings.learning_rate, settings.temperature, settings.bf16)
    report = QualityReport.open(settings.output, _comparable(settings))
    for name in settings.data or [BUILT_IN]:
        wanted = [(recipe, seed) for seed in settings.seeds or SEEDS for recipe in recipes]
        missing = [run for run in wanted if not all(report.has(name, one, run[1]) for one in made(run[0], settings))]
        if missing:
            _measure(report, name, missing, setup, settings)
    return report.tables(REFERENCE)


def made(recipe: str, settings: QualityBenchmark) -> list[str]:
    """Returns the contenders that a run of a recipe makes, beside their hybrids."""
    return [recipe, f"{recipe}, finish"] if settings.finish and recipe in OWN else [recipe]


def _comparable(settings: QualityBenchmark) -> dict[str, Any]:
    """Returns the settings that runs must share to be compared."""
    own = {"output", "data", "recipes", "seeds", "finish", "json"}
    return {name: value for name, value in asdict(settings).items() if name not in own}


def _measure(
    report: QualityReport, name: str, missing: list[tuple[str, int]], setup: Setup, settings: QualityBenchmark
) -> None:
    """Makes runs on one data set; `missing` are recipes and seeds."""
    data = read_data_set(name, setup.model)
    report.check_data(name, data.digest)
    if not any(record.hard_neg_docs for record in data.records) and any(recipe == GIVEN for recipe, _ in missing):
        _say(f"{name}: {GIVEN}: left out, because the data have no hard_neg_docs")
        missing = [run for run in missing if run[0] != GIVEN]
    if not missing and report.has_data(name):
        return
    began = time.monotonic()
    base = rank_base(data, setup)
    report.add_data(name, data.digest, data.clusters, {"BM25": base.bm25} | dict(_named("pretrained", base.ranked)))
    _say(f"{name}: ranked with the pretrained model, {duration(time.monotonic() - began)}")
    for recipe, seed in missing:
        began = time.monotonic()
        found, choice = _trained(data, setup, base, recipe, seed, settings)
        report.add(name, seed, {each: values for one, ranked in found.items() for each, values in _named(one, ranked)})
        scored = ", ".join(f"{one} {ranked.values['test']['nDCG@10'].mean():.4f}" for one, ranked in found.items())
        _say(f"{name}, seed {seed}: test nDCG@10 of {scored}; {duration(time.monotonic() - began)}{choice}")


def _named(contender: str, ranked: Ranked) -> list[tuple[str, Values]]:
    return [(contender, ranked.values), (f"{contender} and BM25", ranked.hybrid)]


def _trained(
    data: DataSet, setup: Setup, base: Base, recipe: str, seed: int, settings: QualityBenchmark
) -> tuple[dict[str, Ranked], str]:
    """Returns the contenders that a run makes, and what the finish says."""
    num_texts = 2 * settings.steps * settings.batch_size
    if recipe in PEERS:
        return {recipe: train_peer(data, setup, PEERS[recipe], num_texts, seed)}, ""
    trained = train_own(data, setup, base, OWN[recipe], num_texts, seed, settings.finish)
    if trained.finished is None:
        return {recipe: trained.last}, ""
    return dict(zip(made(recipe, settings), (trained.last, trained.finished), strict=True)), f"; {trained.choice}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
