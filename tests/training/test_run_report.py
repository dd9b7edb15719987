"""The report of a run shows the facts of this run, where its time went, and the suspects of its training files."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from rqa_ray.data.share import PairsInShare
from rqa_ray.data.sources import PairsBySource
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.training.batch_sizes import describe_pairs
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.job import parse_job
from rqa_ray.training.run_report import page_of_run
from rqa_ray.training.spent import Spent
from rqa_ray.training.trainer import TRAINER_STATE_FILE
from tests.builders import asked_questions, documents
from tests.reports.test_moves import AFTER, BEFORE
from tests.reports.test_suspects_page import suspect, write
from tests.training.test_summary import CHOSEN


def test_the_facts_are_those_of_the_run_also_where_a_search_has_set_it_up(tmp_path):
    state = {"global_step": 8, "epoch": 0.5, "log_history": [{"step": 8, "loss": 1.0, "data_wait_share": 0.25}]}
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / TRAINER_STATE_FILE).write_text(json.dumps(state))
    asked = parse_job("--model_name_or_path m --output_dir out --demo_size 9 --learning_rate 1e-5".split())
    sources = np.arange(1_000)
    write(tmp_path, [suspect(number) for number in range(5)])
    (tmp_path / "suspects.html").touch()
    setup = SimpleNamespace(
        job=asked,
        about_data=["data: 3 questions"],
        cut={"train": 0.0125, "corpus": 0.0},
        train_files=[str(tmp_path / "train.jsonl"), "s3://bucket/train.jsonl"],
        num_rows=1_000,
        shared=PairsInShare.of(asked.share, sources),
        by_source=PairsBySource(("a", "b"), sources % 2, np.ones(1_000), np.ones(1_000), sources),
        workers=SimpleNamespace(describe=lambda: "2 workers"),
    )
    settings = replace(asked.settings, global_batch_size=48, train_share=0.5)
    training = {"learning_rate": 3e-4, "output_dir": str(tmp_path / "out"), "gradient_accumulation_steps": 2}
    winner = replace(asked, settings=settings, training=asked.training | training)
    spent = Spent(reading=10.0, waiting=5.0, steps=15.0, tokens=8_000)
    note = StepNote(8, spent=spent, num_suspects=1_234, leaks={"eval": 2, "test": 1_000})
    compared = {"eval": Comparison.of(asked_questions(), documents(), BEFORE, AFTER)}
    page = page_of_run(staging, setup, winner, CHOSEN, ["chosen"], compared, documents(), note)
    facts = page.facts
    assert (facts["peak learning rate"], facts["pairs of a step"]) == ("0.0003", "48")
    assert facts["training pairs"] == f"{PairsInShare.of(winner.share, sources).num_pairs:,}" != "1,000"
    assert f"{sum(source.pairs for source in page.sources):,}" == facts["training pairs"]
    assert [source.name for source in page.sources] == ["a", "b"]
    assert (facts["steps"], facts["workers"]) == ("8", "2 workers")
    pairs = PairsInShare.of(winner.share, sources).num_pairs
    assert facts["pairs seen"] == describe_pairs(8 * 48, pairs), "not the 0.5 epochs that the Trainer counts"
    assert facts["batches"] == "16" and facts["tokens of all batches"] == "8,000; 1,000 a step, 400 a second"
    assert facts["texts longer than max_seq_length, cut"] == "train 1.2%"
    assert facts["suspects that mining left out"] == "1,234, at most 3 of a question are written"
    said = "note: questions with a gold among the mined hard negatives: eval 2, test 1,000"
    assert page.data == ["data: 3 questions", said]
    assert [(one.name, one.seconds, one.share) for one in page.phases] == [
        ("reading and tokenizing", 10, 1 / 3),
        ("steps: waiting for data", 5, 1 / 6),
        ("steps: computing", 15, 1 / 2),
    ]
    assert (page.suspects.number, len(page.suspects.first), page.suspects.link) == (5, 3, "../suspects.html")
    text = page.html()
    assert "0:15, 50%" in text and '<a href="../suspects.html">' in text and "How do I cancel order 2?" in text
    assert facts["share of the time that steps waited for data"] == "25.0%"
    assert page.chosen_step == CHOSEN.candidate.step and [split.name for split in page.splits] == ["eval"]
    write(staging, [suspect(0)])
    mined = page_of_run(staging, setup, winner, CHOSEN, ["chosen"], compared, documents(), note).suspects
    assert (mined.number, mined.link) == (1, ""), "those that the run itself has mined"
