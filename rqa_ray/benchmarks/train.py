"""Measures speed and memory of a training step: this project, the limit and the peers, in turn, on the same batches.

Each measurement has its own process, so its peak memory is its own. The contenders take turns, so other work on the
machine disturbs all of them alike. Ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from rqa_ray.benchmarks import contenders
from rqa_ray.benchmarks.contenders import OWN, Contender, Workload
from rqa_ray.benchmarks.measure import matmul_peak, measure
from rqa_ray.benchmarks.processes import Figures, in_a_process, summarize
from rqa_ray.benchmarks.random_model import resolve
from rqa_ray.benchmarks.settings import SpeedSettings
from rqa_ray.data.files import find_files
from rqa_ray.data.records import good_records
from rqa_ray.errors import InputError
from rqa_ray.fields import BATCHES, DATA, LOSS, MEASUREMENT, REQUIRED, WORKERS, Check, at_least, word_or_share
from rqa_ray.places import write_json
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.model_types import model_type
from rqa_ray.retriever.tokenizer import TextTokenizer

PEERS = ("sentence-transformers", "cached", "LocalRQA")  # names of `contenders.peers`


@dataclass(kw_only=True)
class TrainBenchmark(SpeedSettings):
    """Measures the speed and memory of a training step.

    usage:   python jobs/benchmark.py train [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py train --train_file train.jsonl --output train.json
    """

    train_file: list[str] = DATA.path(REQUIRED, "Training questions with their gold passages.")
    batch_size: int = BATCHES.setting(64, "Pairs in a batch.", at_least(2))
    steps: int = MEASUREMENT.setting(1, "Steps of a contender in a round.", at_least(1))
    dropout: float = LOSS.setting(0.1, "Dropout probability of all contenders.")
    bf16: bool = BATCHES.setting(False, "All contenders train in bf16.")
    gradient_cache: str = BATCHES.setting(
        "auto", "As in jobs/train.py.", word_or_share("auto", "true", "false"), may_be_true=True
    )
    max_tokens_per_chunk: int | None = BATCHES.setting(None, "As in jobs/train.py.", at_least(1))
    torch_compile: bool = BATCHES.setting(False, "As in jobs/train.py.")
    threads: int = WORKERS.setting(os.cpu_count(), "CPU threads of a contender.", at_least(1), unset="all cores")
    through_ray: list[int] | None = MEASUREMENT.setting(
        None, "Measure training through Ray too, with so many workers.", at_least(1)
    )
    peer: list[str] | None = MEASUREMENT.setting(
        None,
        f"Other projects to measure: none, or some of {', '.join(PEERS)} (cached: with gradient caching).",
        Check(lambda name: name in ("none", *PEERS), f"none, or one of {', '.join(PEERS)}"),
        unset="all of them",
    )

    def workload(self) -> dict[str, Any]:
        """The arguments of `read_workload`."""
        others = ("output", "rounds", "steps", "threads", "through_ray", "peer", "json")
        return {name: value for name, value in asdict(self).items() if name not in others}


def run(settings: TrainBenchmark) -> str:
    """Measures what the settings ask for, writes all figures, and returns a table.

    Raises:
        InputError: the file or model is wrong.
    """
    peers = [*PEERS] if settings.peer is None else settings.peer
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        model = resolve(settings.model_name_or_path, scratch)
        workload = read_workload(**settings.workload() | {"model_name_or_path": model})
        results = measure_all(
            workload, settings.rounds, settings.steps, settings.threads, peers, settings.through_ray or []
        )
    summary = summarize(results, OWN)
    write_report(settings.output, asdict(settings), results, summary)
    return table(summary)


def read_workload(
    train_file: list[str],
    model_name_or_path: str,
    max_seq_length: int,
    batch_size: int,
    dropout: float,
    bf16: bool,
    **options: Any,
) -> Workload:
    """Reads and tokenizes the pairs of a training file.

    Raises:
        InputError: the file or model is wrong, or has too few pairs for a batch.
    """
    folder = find_model_folder(model_name_or_path)
    questions, passages, ids = [], [], []
    for record in good_records(find_files(train_file, "train_file"), "questions"):
        for question in record.questions:
            questions.append(question)
            passages.append(record.gold_docs[0].fmt_content)
            ids.append(record.gold_docs[0].passage_id)
    if len(questions) < batch_size:
        raise InputError(f"--batch_size {batch_size}: {' '.join(train_file)} has {len(questions)} questions")
    tokenizer = TextTokenizer.load(ModelSpec(folder, read_settings(folder, max_seq_length=max_seq_length)))
    tokens = tokenizer.questions(questions), tokenizer.passages(passages)
    return Workload(
        questions, passages, *tokens, np.array(ids), folder, max_seq_length, batch_size, dropout, bf16, **options
    )


def measure_all(
    workload: Workload, rounds: int, steps: int, threads: int, peers: list[str], through_ray: list[int]
) -> dict[str, list[Figures]]:
    """Measures the contenders in turn; returns every round's figures by contender.

    `peers` are names in `contenders.peers`; `through_ray` are numbers of Ray workers.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # because waiting threads would count as CPU time
    kind = model_type(AutoConfig.from_pretrained(workload.model_folder, trust_remote_code=False).model_type)
    of_peers: dict[str, Contender] = {}
    for name, contenders_of_peer in contenders.peers(workload.device).items():
        of_peers |= contenders_of_peer if name in peers else {}
    entries: dict[str, Callable[..., Figures]] = {
        name: partial(measure, contender=contender)
        for name, contender in ({OWN: contenders.own} | contenders.limits(kind) | of_peers).items()
    }
    if through_ray:
        from rqa_ray.benchmarks.through_ray import measure_through_ray

        for workers in through_ray:
            entries[f"{OWN} through Ray, {workers} worker{'s'[: workers > 1]}"] = partial(
                measure_through_ray, num_workers=workers
            )
    peak = in_a_process(matmul_peak, workload.device, workload.bf16, threads)
    results: dict[str, list[Figures]] = {name: [] for name in entries}
    for number in range(rounds):
        for name, entry in list(entries.items()):
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
            # Huge pages for this project, whose jobs ask for them, and for the limit. The peers run as their users run
            # them.
            os.environ["THP_MEM_ALLOC_ENABLE"] = "0" if name in of_peers else "1"
            try:
                figures = in_a_process(entry, workload, number, steps, threads, time.time())
            except torch.OutOfMemoryError:
                if name == OWN:
                    raise
                print(f"{name}: out of memory", file=sys.stderr)
                del entries[name]
                results[name] = []
                continue
            figures["share_of_matmul_peak"] = figures["useful_flops_per_second"] / peak
            results[name].append(figures)
    return results


def table(summary: dict[str, Figures]) -> str:
    """Returns a Markdown table as in README.md; ratios are of pairs per CPU-second, on a GPU of pairs per second.

    A contender that ran out of memory has an empty summary.
    """
    lines = [
        "| | pairs/CPU-s | pairs/s | rqa_ray is faster by | share of matmul peak | tokens a pair, useful of computed "
        "| peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in summary.items():
        if not figures:
            lines.append(f"| {name} | out of memory | | | | | |")
            continue
        tokens = f"{figures['useful_tokens_per_pair']:.0f} of {figures['computed_tokens_per_pair']:.0f}"
        lines.append(
            f"| {name} | {figures['pairs_per_cpu_second']:.2f} | {figures['pairs_per_second']:.2f} "
            f"| {figures['times_slower']:.2f} | {figures['share_of_matmul_peak']:.0%} | {tokens} "
            f"| {figures['peak_memory_gb']:.1f} |"
        )
    lines += ["", f"{OWN} waited for its batches {summary[OWN]['data_wait_share']:.2%} of the time."]
    return "\n".join(lines)


def write_report(output: str, settings: dict[str, Any], results: dict[str, Any], summary: dict[str, Any]) -> None:
    """Writes all figures, and the machine and versions they were measured with, as JSON."""
    is_peer = any(name.startswith("sentence-transformers") for name in results)
    packages = ("torch", "transformers", *(["sentence-transformers"] if is_peer else []))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    report = {
        "settings": settings,
        "device": device,
        "versions": {name: version(name) for name in packages},
        "summary": summary,
        "rounds": results,
    }
    write_json(Path(output), report)
