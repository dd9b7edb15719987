"""What a trial keeps in storage, when the process that Tune starts trains itself."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
import ray.tune

from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.training.checkpoint_files import StepNote, save_evaluations
from rqa_ray.training.checkpoints import list_checkpoints, write_manifest
from rqa_ray.training.finish import TIE_BREAKER
from rqa_ray.training.job import parse_job
from rqa_ray.tuning.trial import Reports

RECALL = "eval_retr/document_recall/recall4"
WORDS = ["--model_name_or_path", "m", "--output_dir", "out", "--demo_size", "9", "--metric_for_best_model", RECALL]


def found(value: float) -> Evaluation:
    metrics = {name.removeprefix("eval_"): value for name in (RECALL, TIE_BREAKER)}
    return Evaluation({"eval": SplitResult(metrics, np.ones((2, 3), np.float32), np.zeros((2, 3), int))})


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], [2, 5]),  # the best and the newest
        (["--save_total_limit", "3"], [2, 3, 4, 5]),
        (["--finish", "merge"], [1, 2, 3, 4, 5]),
    ],
)
def test_a_trial_keeps_the_checkpoints_among_which_its_finish_chooses(words, kept, tmp_path, monkeypatch) -> None:
    told: list[dict] = []
    monkeypatch.setattr(ray.tune, "report", told.append)
    budget = SimpleNamespace(place=lambda step, batch: step)
    root = tmp_path / "root"
    root.mkdir()
    reports = Reports(str(root), "trial", budget, 8, parse_job([*WORDS, *words]))
    for step, value in [(1, 0.2), (2, 0.6), (3, 0.5), (4, 0.4), (5, 0.1), (5, 0.1)]:  # the last step is saved twice
        folder = tmp_path / f"save-{len(told)}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": []}))
        save_evaluations(folder, found(value), found(0.1))
        StepNote(step).save(folder)
        write_manifest(folder, step)
        reports({"step": step}, ray.train.Checkpoint(str(folder)))
    assert [one.step for one in list_checkpoints(str(root), [reports.attempt])] == kept
    assert [one["step"] for one in told] == [1, 2, 3, 4, 5, 5]
