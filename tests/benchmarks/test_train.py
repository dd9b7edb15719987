"""The benchmark of a training step: all contenders train on the same texts, and ratios are from one round."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from rqa_ray.benchmarks import contenders, measure, train
from rqa_ray.benchmarks.contenders import OWN, Stopwatch
from rqa_ray.benchmarks.limit import set_dropout
from rqa_ray.benchmarks.processes import summarize
from rqa_ray.benchmarks.train import read_workload, table, write_report
from rqa_ray.errors import InputError
from rqa_ray.retriever.model_types import ModelType
from tests.models import small_model

CPU = torch.device("cpu")
EVERYONE = {OWN: contenders.own} | contenders.limits(ModelType())
for peer in contenders.peers(CPU).values():
    EVERYONE |= peer


@pytest.fixture
def workload(files, tiny_model):
    work = read_workload([files["train_file"]], tiny_model, 32, batch_size=8, dropout=0.0, bf16=False)
    return dataclasses.replace(work, max_tokens_per_chunk=64)


def test_the_texts_are_those_of_the_training_file_cut_at_the_length(workload, files) -> None:
    with open(files["train_file"]) as file:
        assert workload.questions == [question for line in file for question in json.loads(line)["questions"]]
    assert max(map(len, workload.passage_tokens)) == 32


def test_every_setting_is_of_the_workload_or_of_the_measurement(workload, files, tiny_model) -> None:
    names = {"train_file": [files["train_file"]], "model_name_or_path": tiny_model, "output": "o.json"}
    settings = train.TrainBenchmark(**names, batch_size=8, max_seq_length=32)
    assert read_workload(**settings.workload()).questions == workload.questions


@pytest.mark.parametrize("name", EVERYONE)
def test_a_contender_computes_on_all_tokens_of_the_timed_batches_and_its_padding(workload, name, monkeypatch) -> None:
    monkeypatch.setitem(contenders.LIMIT_TOKENS_PER_BATCH, "cpu", 64)
    batches = workload.batches(seed=0)
    texts = [
        [np.array([len(tokens[row]) for row in batches.take(index)[1]]) for index in (1, 2)]
        for tokens in (workload.question_tokens, workload.passage_tokens)
    ]
    useful = sum(int(lengths.sum()) for column in texts for lengths in column)
    padded = sum(8 * int(lengths.max()) for column in texts for lengths in column)
    stopwatch = Stopwatch(CPU)
    computed = EVERYONE[name](workload, batches, 2, stopwatch)
    assert stopwatch.figures["seconds"] > 0 and stopwatch.figures["cpu_seconds"] > 0
    if name in (OWN, "limit, no padding"):
        assert computed == useful
    elif name == "limit, padded token batches":
        assert useful < computed < padded
    else:
        assert computed == {"LocalRQA's way": 2 * 2 * 8 * 32}.get(name, padded)


def test_the_limit_packs_no_model_that_is_causal_or_windowed() -> None:
    for kind in (ModelType(causal=True), ModelType(window=True), ModelType(packed=False)):
        assert [*contenders.limits(kind)] == ["limit, padded token batches"]


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_dropout_is_set_where_it_is_a_module_and_where_it_is_a_number(kind, tmp_path) -> None:
    model = AutoModel.from_pretrained(small_model(tmp_path, kind, head_dim=8)).train()
    ids = torch.tensor([[5, 6, 7]])
    for probability, alike in ((0.0, True), (0.5, False)):
        set_dropout(model, probability)
        assert torch.equal(*(model(ids).last_hidden_state for _ in range(2))) is alike


def test_the_share_of_time_that_this_project_waits_for_data_is_measured(workload) -> None:
    stopwatch = Stopwatch(CPU)
    contenders.own(workload, workload.batches(seed=0), 2, stopwatch)
    assert 0 < stopwatch.figures["data_wait_share"] < 0.5


def test_useful_operations_are_six_a_weight_and_token_and_those_of_attention(tiny_model) -> None:
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # two layers of attention and feed-forward
    expected = 6 * weights * 30 + 12 * 2 * 32 * (10**2 + 20**2)
    assert measure.training_flops(tiny_model, np.array([10, 20])) == expected


def test_a_file_with_too_few_pairs_for_a_batch_is_refused(files, tiny_model) -> None:
    with pytest.raises(InputError, match="--batch_size 1000: .* has 48 questions"):
        read_workload([files["train_file"]], tiny_model, 32, batch_size=1000, dropout=0.0, bf16=False)


def figures(rate: float) -> dict[str, float]:
    names = ("seconds", "pairs_per_second", "useful_tokens_per_pair", "computed_tokens_per_pair", "peak_memory_gb")
    ones = dict.fromkeys((*names, "share_of_matmul_peak", "data_wait_share"), 1.0)
    return {**ones, "rate": rate, "pairs_per_cpu_second": rate}


def test_the_ratio_is_the_median_of_the_rounds_ratios(tmp_path) -> None:
    results = {OWN: [figures(3), figures(30), figures(4)], "peer": [figures(1), figures(10), figures(2)]}
    summary = summarize(results, OWN)
    assert summary["peer"]["times_slower"] == 3 and summary[OWN]["times_slower"] == 1
    assert "| peer | 2.00 | 1.00 | 3.00 | 100% | 1 of 1 | 1.0 |" in table(summary)
    assert "| peer | out of memory |" in table(summarize(results | {"peer": []}, OWN))
    write_report(str(tmp_path / "report.json"), {"rounds": 3}, results, summary)
    assert json.loads((tmp_path / "report.json").read_text())["rounds"]["peer"] == results["peer"]


@pytest.mark.slow
def test_the_spawned_process_measures_time_and_memory_of_its_own(workload) -> None:
    results = train.run(workload, rounds=1, steps=2, threads=1, peers=["none"], through_ray=[2])
    measured = results[OWN][0]
    assert 0.1 < measured["peak_memory_gb"] < 3 and 0 < measured["share_of_matmul_peak"] < 1
    assert measured["pairs_per_second"] == pytest.approx(16 / measured["seconds"])
    through_ray = results[f"{OWN} through Ray, 2 workers"][0]
    assert through_ray["computed_tokens_per_pair"] == measured["computed_tokens_per_pair"]  # both ranks' tokens
