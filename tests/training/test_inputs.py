"""The eval questions of a run that goes on are those that its checkpoint has not been trained on."""

from types import SimpleNamespace

import pytest

from rqa_ray.data.held_out import NOTHING, HeldOut
from rqa_ray.data.labels import NO_LABELS
from rqa_ray.data.skipped import Skipped
from rqa_ray.errors import InputError
from rqa_ray.training import inputs
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.job import parse_job

FLAGS = "--model_name_or_path m --output_dir out --train_file t --full_dataset_file_path d --eval_share 0.1".split()


@pytest.mark.parametrize(
    ("before", "said"), [(HeldOut(frozenset({4, 5})), "other questions held"), (NOTHING, "no questions held")]
)
def test_a_checkpoint_that_was_trained_on_held_out_questions_is_refused_wherever_it_lies(monkeypatch, before, said):
    held_out = HeldOut(frozenset({5, 6}))
    monkeypatch.setattr(inputs, "hold_out", lambda *given: (held_out, Skipped()))

    def resumed(before: HeldOut) -> SimpleNamespace:
        return SimpleNamespace(note=StepNote(8, held_out=before.digest), location="elsewhere/checkpoint-8")

    job = parse_job(FLAGS)
    for same in (None, resumed(HeldOut(frozenset({6, 5})))):
        assert inputs.held_out_of(job, ["t"], NO_LABELS, same)[0] is held_out
    with pytest.raises(InputError, match=f"^--eval_share 0.1, --seed 42: the checkpoint in elsewhere/.* {said} out"):
        inputs.held_out_of(job, ["t"], NO_LABELS, resumed(before))
