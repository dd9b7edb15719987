"""The benchmark of evaluations measures what it says, on a small corpus; peers are measured by hand only."""

import json

import pytest

from rqa_ray.benchmarks import evaluate
from rqa_ray.benchmarks.benchmark import benchmark, parse_benchmark
from rqa_ray.errors import InputError


def test_evaluations_and_searches_are_timed_and_written(files, tiny_model, tmp_path, monkeypatch):
    in_a_process, measured = evaluate.in_a_process, []

    def measure(contender, *subject):
        """Measures the first contender in a new process, like all contenders outside of this test."""
        measured.append(contender)
        return in_a_process(contender, *subject) if len(measured) == 1 else contender(*subject)

    monkeypatch.setattr(evaluate, "in_a_process", measure)
    words = ["--model_name_or_path", tiny_model, "--max_seq_length", "64", "--rounds", "1", "--peer", "none"]
    words += ["--document_path", files["full_dataset_file_path"], "--eval_data_path", files["test_file"]]
    words += ["--search_passages", "20000", "--search_questions", "50", "--dimensions", "32", "--threads", "1"]
    table = benchmark(parse_benchmark(["eval", *words, "--output", str(tmp_path / "out.json")])).table
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["summary"]) == [
        "rqa_ray",
        "rqa_ray search",
        "rqa_ray search from Parquet",
        "plain matmul, no ranking",
    ]
    own = report["summary"]["rqa_ray"]
    assert own["rate"] == pytest.approx((60 + 24) / own["cpu_seconds"]) and 0 <= own["recall@4"] <= 1
    for name, figures in report["summary"].items():
        assert f"| {name} |" in table and figures["times_slower"] > 0
    assert report["summary"]["rqa_ray search"]["per_second"] > 1e6


def test_questions_have_to_be_named(files, tiny_model):
    words = ["--model_name_or_path", tiny_model, "--peer", "none", "--document_path", files["full_dataset_file_path"]]
    with pytest.raises(InputError, match="--eval_data_path is missing"):
        benchmark(parse_benchmark(["eval", *words, "--output", "out.json"]))
