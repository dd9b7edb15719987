"""The speed and memory of a training step: this project, the limit and the peers, in turn, on the same batches.

Each measurement has a process of its own, so that its peak memory is its own; the contenders take turns, so that what
else runs on the machine disturbs all of them alike. Ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from rqa_ray.benchmarks import contenders
from rqa_ray.benchmarks.contenders import Step, Workload
from rqa_ray.data.files import find_files
from rqa_ray.data.records import read_records
from rqa_ray.errors import InputError
from rqa_ray.retriever.saving import find_model_folder, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer

OWN = "rqa_ray"
PEERS: dict[str, Callable[[Workload], Step]] = {
    "sentence-transformers": partial(contenders.sentence_transformers_step, cached=False),
    "sentence-transformers cached": partial(contenders.sentence_transformers_step, cached=True),
    "LocalRQA's way": contenders.localrqa_step,
}
WARM_UP_PAIRS = 8


def read_workload(
    train_file: str, model_name: str, max_seq_length: int, batch_size: int, dropout: float, bf16: bool, **options: Any
) -> Workload:
    """The pairs of a training file, tokenised.

    Raises:
        InputError: the file or model is wrong, or has too few pairs for a batch.
    """
    folder = find_model_folder(model_name)
    questions, passages, ids = [], [], []
    for path in find_files(train_file, "train_file"):
        for _, record in read_records(path, "questions"):
            if isinstance(record, str):
                raise InputError(record)
            for question in record.questions:  # type: ignore[union-attr]
                gold = record.gold_docs[0]  # type: ignore[union-attr]
                questions.append(question)
                passages.append(gold.fmt_content)
                ids.append(gold.passage_id)
    if len(questions) < batch_size:
        raise InputError(f"--batch_size {batch_size}: {train_file} has {len(questions)} questions")
    tokenizer = TextTokenizer(folder, read_settings(folder, max_seq_length=max_seq_length))
    tokens = tokenizer.questions(questions), tokenizer.passages(passages)
    return Workload(
        questions, passages, *tokens, np.array(ids), folder, max_seq_length, batch_size, dropout, bf16, **options
    )


def run(workload: Workload, rounds: int, steps: int, threads: int, peers: list[str]) -> dict[str, Any]:
    """Measures all contenders in turn; returns every round's figures by contender."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads would count as CPU time
    entries: dict[str, Callable[[Workload], Step]] = {OWN: contenders.rqa_ray_step}
    for max_tokens in contenders.LIMIT_TOKENS_PER_CHUNK[workload.device.type]:
        entries[f"limit, chunks of {max_tokens:,}"] = partial(contenders.limit_step, max_tokens=max_tokens)
    entries |= {name: PEERS[name] for name in peers}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in entries}
    for number in range(rounds):
        for name, make_step in entries.items():
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                indices = range(number * steps, (number + 1) * steps)
                results[name].append(process.submit(_measure, make_step, workload, indices, threads).result())
    return results


def _measure(
    make_step: Callable[[Workload], Step], workload: Workload, indices: range, threads: int
) -> dict[str, float]:
    """Figures of some steps, after a small one that loads and allocates what later ones find in place."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = make_step(workload)
    step(workload.batches(WARM_UP_PAIRS), 0)
    batches = workload.batches(workload.batch_size)
    is_cuda = workload.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = sum(step(batches, index) for index in indices)
    if is_cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    lengths = np.array(
        [len(q) + len(p) for q, p in zip(workload.question_tokens, workload.passage_tokens, strict=True)]
    )
    rows = np.concatenate([batches.batch_rows(index) for index in indices])
    peak = torch.cuda.max_memory_allocated() if is_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "pairs_per_second": len(rows) / seconds,
        "pairs_per_cpu_second": len(rows) / cpu_seconds,
        "useful_tokens_per_pair": float(lengths[rows].mean()),
        "computed_tokens_per_pair": tokens / len(rows),
        "peak_memory_gb": peak / 1e9,
    }


def summarise(results: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds by contender, and `times_slower`: the median of this project's ratio to it."""
    summary = {}
    for name, rounds in results.items():
        summary[name] = {figure: statistics.median(row[figure] for row in rounds) for figure in rounds[0]}
        ratios = [
            own["pairs_per_cpu_second"] / other["pairs_per_cpu_second"]
            for own, other in zip(results[OWN], rounds, strict=True)
        ]
        summary[name]["times_slower"] = statistics.median(ratios)
    return summary


def table(summary: dict[str, dict[str, float]]) -> str:
    """A Markdown table, as it stands in the README."""
    lines = [
        "| | pairs/CPU-s | pairs/s | rqa_ray is faster by | tokens a pair, useful of computed | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in summary.items():
        tokens = f"{figures['useful_tokens_per_pair']:.0f} of {figures['computed_tokens_per_pair']:.0f}"
        lines.append(
            f"| {name} | {figures['pairs_per_cpu_second']:.2f} | {figures['pairs_per_second']:.2f} "
            f"| {figures['times_slower']:.2f} | {tokens} | {figures['peak_memory_gb']:.1f} |"
        )
    return "\n".join(lines)


def write_report(output: str, settings: dict[str, Any], results: dict[str, Any], summary: dict[str, Any]) -> None:
    """Everything measured, with what it was measured on, as JSON."""
    packages = ("torch", "transformers", *(["sentence-transformers"] if any(p in results for p in PEERS) else []))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    report = {
        "settings": settings,
        "device": device,
        "versions": {name: version(name) for name in packages},
        "summary": summary,
        "rounds": results,
    }
    path = Path(output)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=2))
    temporary.replace(path)
