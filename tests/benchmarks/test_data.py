"""The benchmark of reading: all contenders read the same file, and its copies have different passages."""

import os
from pathlib import Path

import pytest

from rqa_ray.benchmarks import data
from rqa_ray.benchmarks.processes import summarize
from rqa_ray.data.records import read_records
from rqa_ray.retriever.encoder_settings import read_settings


@pytest.fixture
def repeated(files, tmp_path) -> str:
    return data.repeat([files["train_file"]], tmp_path / "repeated.jsonl", 30_000)


def test_the_file_has_the_size_and_each_copy_passages_of_its_own(repeated, files) -> None:
    assert 30_000 <= os.path.getsize(repeated) < 60_000
    ids = [document.passage_id for _, record in read_records(repeated, "questions") for document in record.gold_docs]
    once = [document.passage_id for _, r in read_records(files["train_file"], "questions") for document in r.gold_docs]
    assert len(ids) > 2 * len(once) and len(set(ids)) == len(ids) // len(once) * len(set(once))


def test_the_plain_loop_reads_every_line(repeated, tiny_model) -> None:
    figures = data.plain_loop(repeated, tiny_model, read_settings(tiny_model, max_seq_length=32))
    lines = len(Path(repeated).read_text().splitlines())
    share = figures["megabytes_per_second"] * 1e6 / os.path.getsize(repeated)  # of the file in a second
    assert figures["lines_per_second"] == pytest.approx(lines * share)


def test_ratios_are_those_of_a_round() -> None:
    slow, fast = ({"rate": rate, "lines_per_second": rate, "megabytes_per_second": 1.0} for rate in (10.0, 25.0))
    summary = summarize({data.OWN: [fast, fast], "loop": [slow, slow]}, data.OWN)
    assert summary["loop"]["times_slower"] == 2.5
    memory = {125: {"peak_gb": 2.0, "counting_megabytes_per_second": 90.0, "questions_per_second": 1000.0}}
    lines = data.table(summary, memory).splitlines()
    assert lines[3] == "| loop | 10 | 1.0 | 2.50 |" and lines[-1] == "| 125 | 2.00 | 90 | 1,000 |"
