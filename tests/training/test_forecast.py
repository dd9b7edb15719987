"""What a run says after the evaluation of step 0."""

import json

import pytest

from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.texts import duration
from rqa_ray.training.finish import num_merged
from rqa_ray.training.forecast import Forecast
from tests.builders import table
from tests.training.invariance import MINED, Recorder, make_trainer, tables


def asked() -> AskedQuestions:
    """The eval questions of the trainer, with golds as people read them: each golds' document is its own source."""
    rows = tables()["eval"][0].to_pylist()
    for row in rows:
        row |= {"question": "q", "gold_doc": json.dumps({"page_content": f"{row['passage_id']}"})}
    return AskedQuestions([table("questions", rows)])


def forecast(folder, **arguments):
    told: list[str] = []
    trainer = make_trainer(str(folder), 0.25, False, 0, 1, Recorder(), max_steps=2, **arguments)
    trainer.add_callback(Forecast(trainer, {"eval": asked()}, told.append))
    trainer.train()
    return trainer, told


def test_time_and_smallest_gain_are_said_once_before_the_first_step(tmp_path):
    trainer, told = forecast(tmp_path, eval_on_start=True, eval_strategy="steps", eval_steps=1)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0, 1, 2]
    time, power = told
    assert (
        time.startswith("expected time: about 0:0") and ", for 2 steps of 0." in time and "; 2 evaluations of" in time
    )
    number = len(trainer.evaluator.questions["eval"])
    assert power.startswith("smallest gain that a test can show, in points (80% power): recall@4 ")
    assert power.endswith(f" on {number} eval questions")


def test_a_run_whose_pretrained_model_was_evaluated_before_says_nothing(tmp_path):
    assert forecast(tmp_path)[1] == []


def test_a_step_takes_three_forward_passes_and_four_with_gradient_caching(tmp_path):
    for caches, passes in ((False, 3), (True, 4)):
        trainer = make_trainer(str(tmp_path), 0.25, caches, 0, 1, Recorder())
        trainer.state.max_steps = 10
        texts = [trainer.evaluator.corpus.tokens, trainer.evaluator.questions["eval"].tokens]
        encoded = sum(int(part.lengths.sum()) for part in texts)
        trained = sum(token_batch.num_tokens for token_batch in trainer.batches.make(0).token_batches)
        a_step = 60 * passes * trained / encoded
        said = Forecast(trainer, {}, print).describe_time(60.0)
        assert said == (
            f"expected time: about {duration(10 * a_step + 60)}, for 10 steps of {a_step:.1f} s each; "
            "1 evaluation of 60.0 s"
        )


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ({"eval_strategy": "steps", "eval_steps": 3, "max_steps": 10}, 4),
        ({"eval_strategy": "steps", "eval_steps": 0.25, "max_steps": 10}, 4),
        ({"eval_strategy": "steps", "eval_steps": 0.25, "max_steps": 1}, 1),
        ({"eval_strategy": "steps", "eval_steps": 0.25, "max_steps": 3}, 3),
        ({"eval_strategy": "no"}, 1),
    ],
)
def test_the_time_counts_the_evaluations_that_steps_wait_for(tmp_path, arguments, number):
    trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), **arguments)
    trainer.state.max_steps = trainer.args.max_steps
    said = Forecast(trainer, {}, print).describe_time(2.0)
    assert f"; {number} evaluation" in said and said.endswith(" of 2.0 s")
    trainer.schedule.evaluates_beside = True
    assert "evaluation" not in Forecast(trainer, {}, print).describe_time(2.0)


def test_the_time_counts_the_passes_of_mining_and_of_the_finish(tmp_path):
    trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), rounds=MINED)
    trainer.state.max_steps = 10
    plain = Forecast(trainer, {}, print).describe_time(60.0)
    merging = Forecast(trainer, {}, print, num_merged("merge")).describe_time(60.0)
    assert plain.endswith("; 1 evaluation of 60.0 s; mining 1 time more")
    assert merging == f"{plain.replace(minutes(plain), minutes(merging))}; the finish with up to 5 evaluations more"
    assert seconds(merging) - seconds(plain) == 5 * 60
    trainer.args.eval_steps = 0.5  # the evaluation and the round of step 5 encode the corpus once
    assert "mining" not in Forecast(trainer, {}, print).describe_time(60.0)


def minutes(said: str) -> str:
    return said.removeprefix("expected time: about ").partition(",")[0]


def seconds(said: str) -> int:
    number = 0
    for part in minutes(said).split(":"):
        number = 60 * number + int(part)
    return number
