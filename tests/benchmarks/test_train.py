"""The benchmark of a training step: every contender trains on the same texts, and ratios are those of a round."""

import dataclasses
import json

import numpy as np
import pytest

from rqa_ray.benchmarks import contenders, train
from rqa_ray.benchmarks.train import OWN, PEERS, read_workload, summarise, table, write_report
from rqa_ray.errors import InputError


@pytest.fixture
def workload(files, tiny_model):
    return read_workload(files["train_file"], tiny_model, 32, batch_size=8, dropout=0.0, bf16=False)


def test_the_texts_are_those_of_the_training_file_cut_at_the_length(workload, files) -> None:
    with open(files["train_file"]) as file:
        assert workload.questions == [question for line in file for question in json.loads(line)["questions"]]
    assert max(map(len, workload.passage_tokens)) == 32


@pytest.mark.parametrize("name", [OWN, "limit", *PEERS])
def test_a_contender_computes_on_all_tokens_of_the_batch_and_its_padding(workload, name) -> None:
    workload = dataclasses.replace(workload, max_tokens_per_chunk=64)
    make = {OWN: contenders.rqa_ray_step, "limit": lambda work: contenders.limit_step(work, 64), **PEERS}[name]
    batches = workload.batches(8)
    rows = batches.batch_rows(1)
    lengths = np.array(
        [[len(tokens[row]) for row in rows] for tokens in (workload.question_tokens, workload.passage_tokens)]
    )
    padded = {"LocalRQA's way": 2 * 8 * 32}.get(name, 8 * lengths.max(axis=1).sum())
    computed = make(workload)(batches, 1)
    if name in (OWN, "limit"):
        assert lengths.sum() <= computed < padded
    else:
        assert computed == padded


def test_a_file_with_too_few_pairs_for_a_batch_is_refused(files, tiny_model) -> None:
    with pytest.raises(InputError, match="--batch_size 1000: .* has 48 questions"):
        read_workload(files["train_file"], tiny_model, 32, batch_size=1000, dropout=0.0, bf16=False)


def figures(pairs_per_cpu_second: float) -> dict[str, float]:
    names = ("seconds", "pairs_per_second", "useful_tokens_per_pair", "computed_tokens_per_pair", "peak_memory_gb")
    return {**dict.fromkeys(names, 1.0), "pairs_per_cpu_second": pairs_per_cpu_second}


def test_the_ratio_is_the_median_of_the_rounds_ratios(tmp_path) -> None:
    results = {OWN: [figures(3), figures(30), figures(4)], "peer": [figures(1), figures(10), figures(2)]}
    summary = summarise(results)
    assert summary["peer"]["times_slower"] == 3 and summary[OWN]["times_slower"] == 1
    assert "| peer | 2.00 | 1.00 | 3.00 | 1 of 1 | 1.0 |" in table(summary)
    write_report(str(tmp_path / "report.json"), {"rounds": 3}, results, summary)
    assert json.loads((tmp_path / "report.json").read_text())["rounds"]["peer"] == results["peer"]


@pytest.mark.slow
def test_the_spawned_process_measures_time_and_memory_of_its_own(workload) -> None:
    measured = train.run(workload, rounds=1, steps=2, threads=1, peers=[])[OWN][0]
    assert 0.1 < measured["peak_memory_gb"] < 3
    assert measured["pairs_per_second"] == pytest.approx(16 / measured["seconds"])
