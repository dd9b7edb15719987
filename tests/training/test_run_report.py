"""The report of a run shows the facts of this run; a report that cannot be made costs the report only."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from rqa_ray.data.share import PairsInShare
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.training.job import parse_job
from rqa_ray.training.run_report import page_of_run, write_report
from rqa_ray.training.trainer import TRAINER_STATE_FILE
from tests.builders import asked_questions, documents
from tests.reports.test_moves import AFTER, BEFORE
from tests.training.test_summary import CHOSEN


def test_a_report_that_cannot_be_made_is_a_warning_and_leaves_no_file(tmp_path):
    def fails():
        raise KeyError("log_history")

    said = write_report(tmp_path, "out", fails)
    assert said.startswith("warning: no report.html: KeyError: ") and said.endswith(
        "the model and the results are whole"
    )
    assert not list(tmp_path.iterdir())


def test_the_facts_are_those_of_the_run_also_where_a_search_has_set_it_up(tmp_path):
    state = {"global_step": 8, "epoch": 0.5, "log_history": [{"step": 8, "loss": 1.0, "data_wait_share": 0.25}]}
    (tmp_path / TRAINER_STATE_FILE).write_text(json.dumps(state))
    asked = parse_job("--model_name_or_path m --output_dir out --demo_size 9 --learning_rate 1e-5".split())
    sources = np.arange(1_000)
    setup = SimpleNamespace(
        job=asked,
        about_data=["cut: 1%"],
        num_rows=1_000,
        shared=PairsInShare.of(asked.share, sources),
        workers=SimpleNamespace(describe=lambda: "2 workers"),
    )
    settings = replace(asked.settings, global_batch_size=48, train_share=0.5)
    winner = replace(asked, settings=settings, training=asked.training | {"learning_rate": 3e-4})
    compared = {"eval": Comparison.of(asked_questions(), documents(), BEFORE, AFTER)}
    page = page_of_run(tmp_path, setup, winner, CHOSEN, ["chosen"], compared, documents(), {"train_runtime": 61.0})
    facts = page.facts
    assert (facts["peak learning rate"], facts["questions of a step"]) == ("0.0003", "48")
    assert facts["training pairs"] == f"{PairsInShare.of(winner.share, sources).num_pairs:,}" != "1,000"
    assert (facts["steps"], facts["workers"]) == ("8", "2 workers")
    assert facts["time of training, with its evaluations"] == "1:01"
    assert facts["share of the time that steps waited for data"] == "25.0%"
    assert page.chosen_step == CHOSEN.candidate.step and [split.name for split in page.splits] == ["eval"]
