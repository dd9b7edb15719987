"""Every trial sees the same number of pairs for any batch size, and reports at the same places."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.share import PairsInShare, Share
from rqa_ray.errors import InputError
from rqa_ray.training.batch_sizes import with_global_batch
from rqa_ray.training.job import parse_job
from rqa_ray.training.schedule import evaluations_due
from rqa_ray.tuning.budget import Budget
from rqa_ray.tuning.options import parse_search
from rqa_ray.tuning.plan import SearchPlan

WORDS = ["--model_name_or_path", "m", "--demo_size", "100", "--output_dir", "out"]


def job_of(*words: str):
    return with_global_batch(parse_job([*WORDS, *words]), 1)


@given(st.integers(1, 400), st.integers(2, 300), st.integers(2, 300), st.integers(1, 12))
def test_trials_see_the_budget_to_within_half_a_batch(steps, batch, other, evaluations):
    job = job_of("--max_steps", str(steps), "--global_batch_size", str(batch))
    budget = Budget.of(job, 10_000, evaluations)
    trial = budget.job_of(job, {"global_batch_size": other})
    seen = trial.training["max_steps"] * other
    assert seen == other or abs(seen - steps * batch) <= other / 2


@given(st.integers(1, 400), st.integers(1, 12))
def test_all_trials_make_their_last_evaluation_at_their_last_step_and_none_twice_or_late(steps, evaluations):
    budget = Budget(steps * 16, evaluations, 10_000, steps)
    places = [budget.place(step, 16) for step in range(1, steps + 1)]
    assert places[-1] == evaluations and places == sorted(places)
    for step, place in enumerate(places[:-1], 1):  # at the step nearest to its share of all
        assert place in (evaluations - 1, evaluations_due(step, steps, 1 / evaluations))
        assert place / evaluations <= (step + 0.5) / steps + 1e-9


def test_evaluations_are_nearest_to_their_share_of_the_steps():
    due = [evaluations_due(step, 13, 0.25) for step in range(14)]
    assert [step for step in range(1, 14) if due[step] > due[step - 1]] == [3, 6, 10, 13]
    due = [evaluations_due(step, 10, 0.5) for step in range(11)]
    assert [step for step in range(1, 11) if due[step] > due[step - 1]] == [5, 10]


def test_warm_up_logging_and_schedule_follow_the_batch_size():
    job = job_of("--max_steps", "100", "--per_device_train_batch_size", "32", "--warmup_steps", "20")
    trial = Budget.of(job, 10_000, 1).job_of(job, {"global_batch_size": 64})
    assert (trial.training["max_steps"], trial.training["warmup_steps"], trial.training["logging_steps"]) == (
        50,
        10,
        5,
    )
    job = job_of("--max_steps", "100", "--per_device_train_batch_size", "32")
    assert Budget.of(job, 10_000, 1).job_of(job, {"global_batch_size": 64}).training["warmup_steps"] == 0.1


@pytest.mark.parametrize(
    ("words", "pairs", "evaluations"),
    [
        (["--max_steps", "100", "--eval_steps", "20"], 3200, 5),
        (["--max_steps", "100", "--eval_steps", "0.1"], 3200, 10),
        (["--max_steps", "100", "--eval_strategy", "no"], 3200, 1),
        (["--num_train_epochs", "3", "--eval_strategy", "epoch"], 960, 3),
    ],
)
def test_the_budget_is_the_jobs_own(words, pairs, evaluations):
    budget = Budget.of(job_of("--per_device_train_batch_size", "32", *words), 320, 1)
    assert (budget.pairs, budget.evaluations) == (pairs, evaluations)


def test_a_batch_larger_than_the_data_is_the_data():
    job = job_of("--max_steps", "10", "--global_batch_size", "512")
    assert Budget.of(job, 100, 1).pairs == 1000


def test_the_config_of_a_trial_is_one_of_jobs_train(tmp_path):
    job = job_of("--max_steps", "30", "--per_device_train_batch_size", "32")
    trial = Budget.of(job, 10_000, 4).job_of(job, {"global_batch_size": 48, "learning_rate": 3e-5, "temperature": 0.1})
    (tmp_path / "best_config.json").write_text(json.dumps(trial.to_config()))
    again = parse_job([str(tmp_path / "best_config.json")])
    assert again.settings == trial.settings and again.training == trial.training


def test_a_batch_that_accumulation_does_not_divide_is_refused():
    job = job_of("--gradient_accumulation_steps", "3", "--per_device_train_batch_size", "6")
    with pytest.raises(InputError, match="--tune_batch_size 16: is no multiple of gradient_accumulation_steps 3"):
        Budget.of(job, 10_000, 1).job_of(job, {"global_batch_size": 16})


def test_a_share_of_the_pairs_has_the_same_number_of_questions_and_no_larger_batch_than_pairs():
    keys = np.arange(300) // 3
    job = job_of("--max_steps", "30", "--global_batch_size", "128")
    budget = Budget.of(job, 300, 1, PairsInShare.of(Share(), keys))
    small = budget.job_of(job, {"train_share": 0.1})
    pairs = 3 * int(Share(0.1, 42).takes(np.arange(100)).sum())
    assert 0 < budget.rows_of(small) == budget.batch_of(small) == pairs < 128
    assert abs(small.training["max_steps"] * pairs - 30 * 128) <= pairs / 2
    assert budget.batch_of(budget.job_of(job, {"train_share": 1.0})) == 128


def test_the_shares_of_a_search_are_said_and_streamed_files_are_refused():
    search = parse_search([*WORDS, "--global_batch_size", "32", "--tune", "train_share=1,0.5"])
    job, keys = with_global_batch(search.job, 1), np.arange(300) // 3
    plan = SearchPlan.of(search, job, 300, PairsInShare.of(job.share, keys))
    half = Share(0.5, 42).takes(np.arange(100)).sum()
    assert plan.describe_batches(1, False, has_scores=False)[1:] == [
        f"train_share 0.5: {3 * half} of 300 pairs, from {half} of 100 sources",
        "train_share 1: 300 of 300 pairs, from 100 of 100 sources",
    ]
    streamed = SearchPlan.of(search, job, 300, PairsInShare(job.share, 300, 300))
    with pytest.raises(InputError, match="^--tune train_share=...: streamed training files have one share; --data"):
        streamed.describe_batches(1, False, has_scores=False)


def plan_of(*words: str) -> SearchPlan:
    search = parse_search([*WORDS, "--per_device_train_batch_size", "32", *words])
    return SearchPlan.of(search, with_global_batch(search.job, 1), 10_000)


def test_lists_are_searched_without_repeating_a_point():
    words = ["--tune_learning_rate", "1e-6", "1e-5", "1e-4", "--tune_batch_size", "16", "32"]
    plan = plan_of(*words, "--num_samples", "4")
    assert plan.total == 4 and len({tuple(point.values()) for point in plan.points}) == 4
    assert plan_of(*words, "--num_samples", "4").points == plan.points, "a function of the seed"
    assert plan_of(*words, "--num_samples", "4", "--seed", "1").points != plan.points
    assert plan_of(*words, "--num_samples", "40").total == 6
    assert plan_of(*words, "--num_samples", "2", "--search_alg", "grid").total == 6
    assert plan_of("--tune_learning_rate", "1e-6", "1e-5").points is None


def test_where_nothing_is_said_the_learning_rate_and_batch_size_are_searched():
    space = plan_of("--learning_rate", "1e-4").space
    assert str(space["learning_rate"]) == "1e-05 to 0.001, log-uniform"
    assert str(space["global_batch_size"]) == "16 32 64"


def test_a_scheduler_has_several_evaluations_to_compare():
    assert plan_of("--eval_strategy", "no").budget.evaluations == 4
    assert plan_of("--eval_strategy", "no", "--scheduler", "none").budget.evaluations == 1
