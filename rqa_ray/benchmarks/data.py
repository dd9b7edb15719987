"""Measures the speed of reading, from files to token rows, and the memory of streaming.

Three contenders read the same JSONL file: this project through Ray Data, a plain loop in one process (json and the
same fast tokenizer), and the `datasets` library. The file repeats a training file, each copy with other sources. Each
measurement has its own process. The time to start (Ray, the tokenizer, the first task) does not count.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rqa_ray.benchmarks.processes import Figures, PeakMemory, in_a_process, summarize
from rqa_ray.benchmarks.settings import SpeedSettings
from rqa_ray.data.files import find_files
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document, QARecord, format_passage
from rqa_ray.errors import InputError
from rqa_ray.fields import DATA, MEASUREMENT, REQUIRED, at_least
from rqa_ray.places import write_json
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.tokenizer import TextTokenizer

OWN = "rqa_ray, Ray Data"
RECORDS_AT_ONCE = 256
WARM_UP_RECORDS = 200
STREAMED_WINDOWS = 6
BATCH_SIZE = 256


@dataclass(kw_only=True)
class DataBenchmark(SpeedSettings):
    """Measures how fast files become token rows, and how much memory streaming takes.

    usage:   python jobs/benchmark.py data [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py data --train_file train.jsonl --output data.json
    """

    train_file: list[str] = DATA.path(REQUIRED, "Training questions with their gold passages.")
    size_mb: int = MEASUREMENT.setting(500, "Size of the file whose reading is timed (MB).", at_least(1))
    stream_mb: list[int] | None = MEASUREMENT.setting(
        None, "Measure the peak memory of streaming so much data (MB).", at_least(1)
    )


def run(settings: DataBenchmark) -> str:
    """Measures what the settings ask for, writes all figures, and returns a table.

    Raises:
        InputError: a file or the model is wrong.
    """
    folder = find_model_folder(settings.model_name_or_path)
    encoder = read_settings(folder, max_seq_length=settings.max_seq_length)
    files = find_files(settings.train_file, "train_file")
    memory = {}
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        path = repeat(files, Path(scratch) / "train.jsonl", settings.size_mb * 10**6)
        results: dict[str, list[Figures]] = {name: [] for name in CONTENDERS}
        for number in range(settings.rounds):
            for name, (contender, parallelism) in CONTENDERS.items():
                print(f"round {number + 1}/{settings.rounds}: {name}", file=sys.stderr)
                os.environ["TOKENIZERS_PARALLELISM"] = parallelism
                results[name].append(in_a_process(contender, path, folder, encoder))
        os.environ.pop("TOKENIZERS_PARALLELISM")
        for size in settings.stream_mb or []:
            print(f"streaming {size} MB", file=sys.stderr)
            path = repeat(files, Path(scratch) / "train.jsonl", size * 10**6)
            memory[size] = in_a_process(stream, path, folder, encoder)
    summary = summarize(results, OWN)
    report = {"settings": asdict(settings), "summary": summary, "rounds": results, "streaming": memory}
    write_json(Path(settings.output), report)
    return table(summary, memory)


def repeat(files: list[str], path: Path, num_bytes: int) -> str:
    """Writes the records of some files several times, each copy with other sources; returns the path."""
    records = [record for source in files for _, record in read_records(source, "questions")]
    size, copy = 0, 0
    with path.open("w") as file:
        while size < num_bytes:
            for record in records:
                if not isinstance(record, QARecord):
                    raise InputError(str(record))
                golds, negatives = (_of_copy(part, copy) for part in (record.gold_docs, record.hard_neg_docs))
                line = {"questions": record.questions, "gold_docs": golds, "hard_neg_docs": negatives}
                size += file.write(json.dumps(line) + "\n")
            copy += 1
    return str(path)


def _of_copy(documents: list[Document], copy: int) -> list[dict[str, Any]]:
    records = [document.to_dict() for document in documents]
    for record in records:
        record["metadata"] = record["metadata"] | {"source": f"{record['metadata'].get('source')}#{copy}"}
    return records


def ray_data(path: str, folder: str, settings: EncoderSettings) -> Figures:
    """Reads with this project: `read_inputs`, as jobs/train.py does in resident mode."""
    from rqa_ray.cluster.connection import connect

    connect()
    from rqa_ray.data.readers import read_inputs

    spec = ModelSpec(folder, settings)
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        for name in ("1.jsonl", "2.jsonl"):  # one task on each core
            with open(path) as file:
                (Path(scratch) / name).write_text("".join(islice(file, WARM_UP_RECORDS)))
        read_inputs({"train": [f"{scratch}/1.jsonl", f"{scratch}/2.jsonl"]}, spec)
    return _timed(path, lambda: read_inputs({"train": [path]}, spec))


def plain_loop(path: str, folder: str, settings: EncoderSettings) -> Figures:
    """Reads in one process: parses 256 lines, tokenizes their texts, keeps the rows."""
    tokenize = TextTokenizer.load(ModelSpec(folder, settings))
    with open(path) as file:
        _tokenize_lines(list(islice(file, WARM_UP_RECORDS)), tokenize)

    def read() -> list:
        rows = []
        with open(path) as file:
            while lines := list(islice(file, RECORDS_AT_ONCE)):
                rows += _tokenize_lines(lines, tokenize)
        return rows

    return _timed(path, read)


def _tokenize_lines(lines: list[str], tokenize: TextTokenizer) -> list:
    records = [json.loads(line) for line in lines]
    questions = tokenize.questions([question for record in records for question in record["questions"]])
    documents = [document for record in records for document in record["gold_docs"] + record["hard_neg_docs"]]
    texts = [doc.get("fmt_content") or format_passage(doc["page_content"], doc["metadata"]) for doc in documents]
    return [questions, tokenize.passages(texts)]


def datasets_library(path: str, folder: str, settings: EncoderSettings) -> Figures:
    """Reads with Hugging Face's library: lines of text, mapped in one process for each core."""
    import datasets

    datasets.disable_progress_bars()
    tokenize = TextTokenizer.load(ModelSpec(folder, settings))

    def tokens(batch: dict[str, list[str]]) -> dict[str, list]:
        questions, passages = _tokenize_lines(batch["text"], tokenize)
        return {"tokens": [*questions, *passages]}

    def read() -> None:
        with tempfile.TemporaryDirectory(prefix="rqa_ray-") as cache:
            lines = datasets.load_dataset("text", data_files=path, split="train", cache_dir=cache)
            options = {"batched": True, "batch_size": RECORDS_AT_ONCE, "remove_columns": ["text"]}
            lines.map(tokens, num_proc=os.cpu_count(), **options)

    return _timed(path, read)


CONTENDERS: dict[str, tuple[Callable[..., Figures], str]] = {
    OWN: (ray_data, "true"),
    "plain loop, TOKENIZERS_PARALLELISM=false": (plain_loop, "false"),
    "plain loop, TOKENIZERS_PARALLELISM=true": (plain_loop, "true"),
}
try:
    import datasets as _datasets  # noqa: F401

    CONTENDERS["datasets library"] = (datasets_library, "false")
except ImportError:
    pass


def _timed(path: str, read: Callable[[], Any]) -> Figures:
    with open(path, "rb") as file:
        num_lines = sum(1 for _ in file)
    began = time.perf_counter()
    rows = read()
    seconds = time.perf_counter() - began
    del rows  # held until here, because freeing the rows is not part of reading
    rate = num_lines / seconds
    return {"lines_per_second": rate, "megabytes_per_second": os.path.getsize(path) / 1e6 / seconds, "rate": rate}


def stream(path: str, folder: str, settings: EncoderSettings) -> Figures:
    """Returns the peak memory while windows are streamed: PSS of this process and of Ray's, and the object store."""
    from rqa_ray.cluster.connection import connect

    connect()
    from rqa_ray.data.batches import GlobalBatches
    from rqa_ray.data.streaming import fetcher, open_stream
    from rqa_ray.data.windows import WindowedRows

    with PeakMemory() as peak:
        began = time.perf_counter()
        counted = open_stream([path], ModelSpec(folder, settings))
        counting = time.perf_counter() - began
        plan, store = counted.serve(seed=0, busy_cpus=0)
        batches = GlobalBatches(WindowedRows(plan, fetcher(store)), BATCH_SIZE, 0.05, seed=0, pad_id=0)
        starts = plan.epoch(0).starts
        num_batches = int(starts[: STREAMED_WINDOWS + 1][-1]) // BATCH_SIZE
        began = time.perf_counter()
        for batch in range(num_batches):
            batches[batch]
        seconds = time.perf_counter() - began
    return {
        "peak_gb": peak.bytes / 1e9,
        "counting_megabytes_per_second": os.path.getsize(path) / 1e6 / counting,
        "questions_per_second": num_batches * BATCH_SIZE / seconds,
        "windows": float(len(starts) - 1),
    }


def table(summary: dict[str, Figures], memory: dict[int, Figures]) -> str:
    """Returns Markdown tables as in README.md."""
    lines = ["| | lines/s | MB/s | rqa_ray is faster by |", "|---|---|---|---|"]
    for name, figures in summary.items():
        lines.append(
            f"| {name} | {figures['lines_per_second']:,.0f} | {figures['megabytes_per_second']:.1f} "
            f"| {figures['times_slower']:.2f} |"
        )
    if memory:
        lines += ["", "| streamed, MB | peak memory, GB | counting, MB/s | questions/s |", "|---|---|---|---|"]
    for size, figures in memory.items():
        lines.append(
            f"| {size:,} | {figures['peak_gb']:.2f} | {figures['counting_megabytes_per_second']:.0f} "
            f"| {figures['questions_per_second']:,.0f} |"
        )
    return "\n".join(lines)
