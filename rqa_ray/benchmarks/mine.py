"""Measures mining: this project against sentence-transformers' `mine_hard_negatives`, with the same model and margin.

Each measurement has its own process. The time to start (Ray, loading the model) does not count. The peer takes
candidates from the model alone, and does not look for near-duplicates.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

from rqa_ray.benchmarks.contenders import OWN
from rqa_ray.benchmarks.processes import Figures, PeakMemory, in_a_process, summarize
from rqa_ray.benchmarks.settings import SpeedSettings
from rqa_ray.benchmarks.train import write_report
from rqa_ray.corpus_settings import MineSettings
from rqa_ray.data.distinct import read_distinct
from rqa_ray.data.files import find_files
from rqa_ray.data.records import good_records
from rqa_ray.fields import DATA, LOSS, REQUIRED, at_least
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.settings import MiningSettings, corpus_path

PEER = "sentence-transformers"


@dataclass(kw_only=True)
class MineBenchmark(MiningSettings, SpeedSettings):
    """Measures the speed and memory of mining hard negatives.

    usage:   python jobs/benchmark.py mine [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py mine --train_file train.jsonl --document_path documents.jsonl \\
                 --output mine.json
    """

    train_file: list[str] = DATA.path(REQUIRED, "Training questions with their gold passages.")
    document_path: list[str] = corpus_path(REQUIRED)
    num_negatives: int = LOSS.setting(8, "Hard negatives of a question, at most.", at_least(1))


def run(settings: MineBenchmark) -> str:
    """Mines with each project in turn, writes all figures, and returns a table.

    Raises:
        InputError: a file or the model is wrong.
    """
    contenders = {OWN: mine_own}
    if importlib.util.find_spec("datasets"):
        contenders[PEER] = mine_peer
    else:
        print(f"note: {PEER} mines with the package datasets, which is not installed", file=sys.stderr)
    results: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(settings.rounds):
        for name, contender in contenders.items():
            print(f"round {number + 1}/{settings.rounds}: {name}", file=sys.stderr)
            results[name].append(in_a_process(contender, settings))
    summary = summarize(results, OWN)
    write_report(settings.output, asdict(settings), results, summary)
    return table(summary)


def mine_own(settings: MineBenchmark) -> Figures:
    """Mines with this project, as jobs/mine.py does."""
    from rqa_ray.cluster.connection import connect

    connect()
    from rqa_ray.corpus.mine import mine
    from rqa_ray.evaluation.hybrid_weight import weigh

    shared = {name: getattr(settings, name) for name in asdict(MiningSettings())}
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch, PeakMemory() as peak:
        result = mine(
            MineSettings(
                embedding_model_name_or_path=settings.model_name_or_path,
                document_path=settings.document_path,
                train_file=settings.train_file,
                output_dir=f"{scratch}/mined",
                max_seq_length=settings.max_seq_length,
                num_negatives=settings.num_negatives,
                **shared,
            ),
            weigh,
        )
    return _figures(result.mining.counts["questions"], result.seconds, result.encoding_seconds, peak.bytes)


def mine_peer(settings: MineBenchmark) -> Figures:
    """Mines with sentence-transformers."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    corpus = [document.fmt_content for document in read_distinct(find_files(settings.document_path, "document_path"))]
    records = good_records(find_files(settings.train_file, "train_file"), "questions")
    pairs = [(question, gold.fmt_content) for one in records for question in one.questions for gold in one.gold_docs]
    questions, golds = (list(part) for part in zip(*pairs, strict=True))
    model = _Timed(SentenceTransformer(find_model_folder(settings.model_name_or_path)))
    model.inner.max_seq_length = settings.max_seq_length
    with PeakMemory() as peak:
        began = time.perf_counter()
        mine_hard_negatives(
            Dataset.from_dict({"question": questions, "gold": golds}),
            cast(SentenceTransformer, model),
            corpus=corpus,
            relative_margin=1 - settings.mine_margin,
            num_negatives=settings.num_negatives,
            range_max=settings.mine_depth,
            sampling_strategy="random",
            output_format="n-tuple",
            output_scores=True,
            verbose=False,
        )
        seconds = time.perf_counter() - began
    return _figures(len(set(questions)), seconds, model.seconds, peak.bytes)


class _Timed:
    """A model that measures the seconds it encodes."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not name.startswith("encode"):
            return found

        def timed(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return found(*arguments, **more)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def _figures(questions: int, seconds: float, encoding: float, peak: int) -> Figures:
    rest = {"encoding_seconds": encoding, "encoding_share": encoding / seconds, "peak_memory_gb": peak / 1e9}
    return {"rate": questions / seconds, "seconds": seconds, **rest}


def table(summary: dict[str, Figures]) -> str:
    """Returns a Markdown table as in README.md."""
    lines = ["| | seconds | of which encoding | rqa_ray is faster by | peak memory, GB |", "|---|---|---|---|---|"]
    for name, figures in summary.items():
        lines.append(
            f"| {name} | {figures['seconds']:.0f} | {figures['encoding_share']:.0%} | {figures['times_slower']:.2f} "
            f"| {figures['peak_memory_gb']:.2f} |"
        )
    return "\n".join(lines)
