"""A search goes on only with the eval questions with which it began."""

from types import SimpleNamespace

import pytest

from rqa_ray.errors import InputError
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.training.job import parse_job
from rqa_ray.tuning import models
from tests.training.test_summary import state


def test_a_search_that_began_with_other_eval_questions_is_refused(monkeypatch):
    found: Evaluation = state(0, [[0, 1]], 0.5).evaluation
    found.splits["eval"].asked = "the questions of the search"
    stored = SimpleNamespace(evaluation=lambda: found)
    monkeypatch.setattr(models.stored, "list_run_names", lambda *given: ["pretrained.0"])
    monkeypatch.setattr(models.stored, "list_checkpoints", lambda *given: [stored])
    job = parse_job("--model_name_or_path m --output_dir out --demo_size 9".split())
    asked = {"eval": "the questions of the search", "test": "others"}
    setup = SimpleNamespace(job=job, fingerprints=lambda: asked)
    assert models.evaluate_pretrained(setup, {}, "root") == {"pretrained": stored}
    asked["eval"] = "others"
    with pytest.raises(InputError, match="^--resume: the search began with other eval questions or passages"):
        models.evaluate_pretrained(setup, {}, "root")
