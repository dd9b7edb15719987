"""Early stopping: the evaluations since the best one decide, in a resumed run too."""

import pytest
import torch

from rqa_ray.evaluation.results import Evaluation
from rqa_ray.training.schedule import evaluations_since_best
from rqa_ray.training.trainer import ContrastiveTrainer
from tests.training.invariance import Recorder, make_trainer, weights


@pytest.mark.parametrize(
    ("metric", "values", "number"),
    [
        ("eval_retr/document_recall/recall4", [0.5, 0.6, 0.6, 0.5], 2),
        ("eval_retr/document_recall/recall4", [0.5, 0.4, 0.7], 0),
        ("eval_loss", [0.5, 0.4, 0.7], 1),
        ("eval_loss", [], 0),
    ],
)
def test_evaluations_that_are_no_better_than_the_best_are_counted(metric, values, number):
    history = [{"loss": 1.0}, *({metric: value, "step": step} for step, value in enumerate(values)), {"loss": 0.1}]
    assert evaluations_since_best(history, metric) == number


def trainer(folder, **arguments) -> ContrastiveTrainer:
    """A trainer that does not learn, and evaluates after every step."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "learning_rate": 0.0}
    made = make_trainer(str(folder), 0.25, False, 0, 1, Recorder(), **(options | {"max_steps": 6} | arguments))
    made.schedule.patience = 2
    return made


def evaluated(made: ContrastiveTrainer) -> list[int]:
    return [entry["step"] for entry in made.state.log_history if "eval_loss" in entry]


def test_a_run_that_gets_no_better_ends_early_and_is_saved_at_its_last_step(tmp_path):
    made, saved = trainer(tmp_path), []
    made._save_checkpoint = lambda *_: saved.append(made.state.global_step)
    made.train()
    assert evaluated(made) == saved == [0, 1, 2] and made.ends_early
    assert made.why_early().startswith("stopped early at step 2: ")


def test_a_run_that_was_to_end_anyway_does_not_say_that_it_has_ended_early(tmp_path):
    made = trainer(tmp_path, max_steps=2)
    made.train()
    assert evaluated(made) == [0, 1, 2] and made.ends_early and made.why_early() == ""


def test_a_run_without_patience_goes_on(tmp_path):
    made = trainer(tmp_path)
    made.schedule.patience = None
    made.train()
    assert made.state.global_step == 6 and not made.ends_early


def test_a_resumed_run_ends_at_the_same_step(tmp_path):
    made = trainer(tmp_path)
    del made._save_checkpoint  # the real one
    made.train()
    checkpoints = tmp_path / "scratch-0"
    resumed = trainer(tmp_path, eval_on_start=False)
    assert not resumed.is_finished(str(checkpoints / "checkpoint-1"))
    resumed.train(resume_from_checkpoint=str(checkpoints / "checkpoint-1"))
    assert evaluated(resumed) == [0, 1, 2]
    assert torch.equal(weights(resumed.model), weights(made.model))
    assert trainer(tmp_path).is_finished(str(checkpoints / "checkpoint-2"))


def test_an_evaluation_that_a_stop_had_put_off_counts(tmp_path):
    made = trainer(tmp_path, eval_steps=3)
    del made._save_checkpoint
    made.schedule.patience = None
    made.train()
    checkpoint = str(tmp_path / "scratch-0" / "checkpoint-3")
    for found, ends in ((Evaluation(), False), (made.found, True)):
        resumed = trainer(tmp_path, eval_steps=3)
        resumed.schedule.made_up = found
        assert resumed.is_finished(checkpoint) is ends
