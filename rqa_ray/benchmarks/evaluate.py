"""Measures the speed of an evaluation against sentence-transformers, and of the search alone against FAISS.

Each measurement has its own process, and the contenders take turns. Ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from rqa_ray.benchmarks.contenders import OWN, Stopwatch
from rqa_ray.benchmarks.measure import matmul_peak, training_flops
from rqa_ray.benchmarks.processes import Figures, in_a_process, summarize
from rqa_ray.benchmarks.search import OWN_SEARCH, Search, save, search_table, searches
from rqa_ray.benchmarks.settings import SpeedSettings
from rqa_ray.benchmarks.train import write_report
from rqa_ray.corpus.shards import ROWS_PER_BLOCK
from rqa_ray.corpus.topk import search_blocks
from rqa_ray.data.distinct import read_distinct
from rqa_ray.data.files import find_files
from rqa_ray.data.records import good_records
from rqa_ray.data.schema import question_key
from rqa_ray.errors import InputError, need_extra
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.fields import BATCHES, DATA, MEASUREMENT, WORKERS, at_least
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder

QUALITY = {
    "nDCG@10": ("retr/document_ndcg/ndcg10", "cosine_ndcg@10"),
    "recall@4": ("retr/document_recall/recall4", "cosine_accuracy@4"),
}


@dataclass
class Task:
    """What is evaluated: texts, golds, model."""

    model_folder: str
    max_seq_length: int
    bf16: bool
    threads: int
    passages: dict[int, str]
    questions: list[str]
    golds: list[list[int]]


@dataclass(kw_only=True)
class EvaluationBenchmark(SpeedSettings):
    """Measures the speed and memory of an evaluation, from texts to metrics, and of a search.

    usage:   python jobs/benchmark.py eval [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py eval --output eval.json --document_path documents.jsonl \\
                 --eval_data_path test.jsonl
    """

    document_path: list[str] | None = DATA.path(None, "Passages.", unset="none: the search alone is measured")
    eval_data_path: list[str] | None = DATA.path(None, "Questions with their gold passages.")
    bf16: bool = BATCHES.setting(False, "The contenders encode in bf16.")
    threads: int = WORKERS.setting(os.cpu_count(), "CPU threads of a contender.", at_least(1), unset="all cores")
    search_passages: int = MEASUREMENT.setting(
        1_000_000, "Random vectors that are searched; 0: no search.", at_least(0)
    )
    search_questions: int = MEASUREMENT.setting(1_000, "Random vectors that stand for questions.", at_least(1))
    dimensions: int = MEASUREMENT.setting(384, "Dimensions of the random vectors.", at_least(1))
    top_k: int = MEASUREMENT.setting(100, "Passages kept for each question.", at_least(1))
    peer: Literal["all", "none"] = MEASUREMENT.setting("all", "Other projects to measure.")


def run(settings: EvaluationBenchmark) -> str:
    """Measures what the settings ask for, writes all figures, and returns tables.

    Raises:
        InputError: a file or the model is wrong, or a peer is not installed.
    """
    if settings.peer == "all":
        need_extra("--peer all", "index", "faiss")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # because waiting threads would count as CPU time
    tables: list[str] = []
    results: dict[str, list[Figures]] = {}
    summaries: dict[str, Figures] = {}
    if settings.document_path:
        task = read_task(settings)
        peak = in_a_process(matmul_peak, torch.device("cpu"), settings.bf16, settings.threads)
        entries: dict[str, Callable[[Any], Figures]] = {OWN: evaluate_own}
        if settings.peer == "all":
            entries["sentence-transformers"] = evaluate_peer
        results |= in_turn(entries, task, settings.rounds)
        summary = summarize({name: results[name] for name in entries}, OWN)
        summaries |= summary
        tables.append(evaluation_table(summary, peak))
    if settings.search_passages:
        with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
            search = Search(
                settings.search_passages,
                settings.search_questions,
                settings.dimensions,
                settings.top_k,
                settings.threads,
                scratch,
            )
            save(search)
            found = in_turn(searches(settings.peer == "all"), search, settings.rounds)
        results |= found
        summary = summarize(found, OWN_SEARCH)
        summaries |= summary
        tables.append(search_table(summary))
    write_report(settings.output, asdict(settings), results, summaries)
    return "\n\n".join(tables)


def in_turn(entries: dict[str, Callable[[Any], Figures]], subject: Any, rounds: int) -> dict[str, list[Figures]]:
    """Returns every round's figures by contender."""
    results: dict[str, list[Figures]] = {name: [] for name in entries}
    for number in range(rounds):
        for name, entry in entries.items():
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
            # huge pages for this project, as in its jobs; none for peers, as their users run them
            os.environ["THP_MEM_ALLOC_ENABLE"] = "1" if OWN in name else "0"
            results[name].append(in_a_process(entry, subject))
    return results


def read_task(settings: EvaluationBenchmark) -> Task:
    """Reads the texts of the files.

    Raises:
        InputError: a bad record, or no questions.
    """
    if not settings.eval_data_path:
        raise InputError("--eval_data_path is missing")
    documents = read_distinct(find_files(settings.document_path or [], "document_path"))
    passages = {document.passage_id: document.fmt_content for document in documents}
    questions: list[str] = []
    by_wording: dict[int, dict[int, None]] = {}
    for record in good_records(find_files(settings.eval_data_path, "eval_data_path"), "questions"):
        questions += record.questions
        for question in record.questions:
            golds = by_wording.setdefault(question_key(question), {})
            golds |= {gold.passage_id: None for gold in record.gold_docs}
    golds_of = [list(by_wording[question_key(question)]) for question in questions]
    folder = find_model_folder(settings.model_name_or_path)
    return Task(folder, settings.max_seq_length, settings.bf16, settings.threads, passages, questions, golds_of)


def evaluate_own(task: Task) -> Figures:
    """Evaluates with this project, without Ray: tokenize, encode, search, metrics."""
    torch.set_num_threads(task.threads)
    settings = read_settings(task.model_folder, max_seq_length=task.max_seq_length)
    embedder = Embedder.load(ModelSpec(task.model_folder, settings), "cpu", task.bf16)
    embedder.questions(task.questions[:8])
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.start()
    rows = embedder.tokenizer.questions(task.questions), embedder.tokenizer.passages(list(task.passages.values()))
    asked, passages = (embedder.rows(part) for part in rows)
    blocks = zip(torch.arange(len(passages)).split(ROWS_PER_BLOCK), passages.split(ROWS_PER_BLOCK), strict=True)
    topk = search_blocks(asked, blocks, min(100, len(passages)), task.threads)
    found = retrieval_metrics(np.array(list(task.passages))[topk.result()[1].numpy()], task.golds)
    stopwatch.stop()
    lengths = [np.array([len(row) for row in part]) for part in rows]
    flops = sum(training_flops(task.model_folder, part) for part in lengths) / 3
    return _evaluated(task, stopwatch, {name: found[key] for name, (key, _) in QUALITY.items()}) | {"flops": flops}


def evaluate_peer(task: Task) -> Figures:
    """Evaluates with sentence-transformers' InformationRetrievalEvaluator."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    torch.set_num_threads(task.threads)
    dtype = torch.bfloat16 if task.bf16 else torch.float32
    model = SentenceTransformer(task.model_folder, device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = task.max_seq_length
    evaluator = InformationRetrievalEvaluator(
        {str(number): question for number, question in enumerate(task.questions)},
        {str(number): text for number, text in task.passages.items()},
        {str(number): {str(gold) for gold in golds} for number, golds in enumerate(task.golds)},
        accuracy_at_k=[4],
        write_csv=False,
    )
    model.encode(task.questions[:8])
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.start()
    found = evaluator(model)
    stopwatch.stop()
    return _evaluated(task, stopwatch, {name: found[key] for name, (_, key) in QUALITY.items()})


def _evaluated(task: Task, stopwatch: Stopwatch, quality: dict[str, float]) -> Figures:
    number = len(task.passages) + len(task.questions)
    figures = stopwatch.figures
    return {**figures, "rate": number / figures["cpu_seconds"], "per_second": number / figures["seconds"], **quality}


def evaluation_table(summary: dict[str, Figures], peak: float) -> str:
    """Returns a Markdown table as in README.md."""
    lines = ["| | texts/CPU-s | texts/s | rqa_ray is faster by | nDCG@10 | recall@4 | peak memory, GB |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, figures in summary.items():
        quality = " | ".join(f"{figures[label]:.4f}" for label in QUALITY)
        lines.append(
            f"| {name} | {figures['rate']:.1f} | {figures['per_second']:.1f} | {figures['times_slower']:.2f} "
            f"| {quality} | {figures['peak_memory_gb']:.1f} |"
        )
    own = summary[OWN]
    share = own["flops"] / own["cpu_seconds"] / peak
    return "\n".join([*lines, "", f"{OWN}: {share:.0%} of the matmul peak on tokens that are no padding"])
