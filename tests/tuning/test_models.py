"""The models that a search evaluates itself: the pretrained model and the winner."""

from types import SimpleNamespace

from rqa_ray.reports.trials import Choices
from rqa_ray.training.job import parse_job
from rqa_ray.tuning import models


def test_the_pretrained_model_is_evaluated_once_for_each_choice_that_changes_what_it_finds(monkeypatch):
    evaluated: dict[str, str | None] = {}

    def evaluate(setup, job, root, run):
        evaluated[run] = job.settings.pooling_type

    monkeypatch.setattr(models, "evaluate", evaluate)
    monkeypatch.setattr(models.stored, "list_run_names", lambda root, prefix: [])
    monkeypatch.setattr(
        models.stored, "list_checkpoints", lambda root, names: [name for name in names if name in evaluated]
    )
    setup = SimpleNamespace(job=parse_job("--model_name_or_path m --output_dir out --demo_size 9".split()))
    space = {"pooling_type": Choices(("mean", "cls")), "temperature": Choices((0.1, 0.2))}
    found = models.evaluate_pretrained(setup, space, "root")
    assert evaluated == {"pretrained-mean.0": "mean", "pretrained-cls.0": "cls"}
    assert found == {"pretrained-mean": "pretrained-mean.0", "pretrained-cls": "pretrained-cls.0"}
    models.evaluate_pretrained(setup, {"temperature": Choices((0.1, 0.2))}, "root")
    assert list(evaluated)[2:] == ["pretrained.0"]
