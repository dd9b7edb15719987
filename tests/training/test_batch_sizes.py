"""What a batch size means in candidates, and the hard negatives that cannot be had."""

import pytest

from rqa_ray.errors import InputError
from rqa_ray.reports.trials import Choices, Range
from rqa_ray.training.batch_sizes import (
    batch_of,
    check_negatives,
    check_teacher,
    micro_batch_size,
    num_drawn,
    steps_for,
    with_global_batch,
    with_steps,
    with_teacher_temperature,
)
from rqa_ray.training.job import Job, parse_job
from rqa_ray.tuning.options import parse_search
from rqa_ray.tuning.plan import SearchPlan

WORDS = ["--model_name_or_path", "m", "--output_dir", "out", "--demo_size", "900", "--global_batch_size", "40"]


@pytest.mark.parametrize(
    ("words", "has_negatives", "said"),
    [
        ([], True, "40 pairs, up to 2 hard negatives, 42 candidates"),
        (["--negatives_per_question", "3"], True, "40 pairs, up to 122 hard negatives, 162 candidates"),
        (["--hard_neg_ratio", "0.5"], False, "40 pairs, 40 candidates"),
    ],
)
def test_the_candidates_of_a_question_are_those_that_its_batch_may_bring(words, has_negatives, said):
    size, lines = micro_batch_size(parse_job([*WORDS, *words]), 2, 900, has_negatives)
    assert size == 40 and said in lines[0]


@pytest.mark.parametrize(("own", "said"), [("0", True), ("1", False)])
def test_a_share_too_small_for_one_hard_negative_is_said_where_questions_bring_none_of_their_own(own, said):
    job = parse_job([*WORDS, "--hard_neg_ratio", "0.01", "--negatives_per_question", own])
    assert any("is no hard negative" in line for line in micro_batch_size(job, 1, 900, True)[1]) is said


def one_question_a_batch(*words: str) -> Job:
    return with_global_batch(parse_job([*WORDS[:-2], "--per_device_train_batch_size", "1", *words]), 1)


@pytest.mark.parametrize(
    ("words", "num_rows", "has_negatives"),
    [
        ([], 900, False),
        (["--hard_neg_ratio", "0.5"], 900, True),  # half a hard negative is none
        (["--gradient_accumulation_steps", "4"], 900, False),
        (["--per_device_train_batch_size", "8"], 1, False),
    ],
)
def test_a_batch_of_one_question_without_hard_negatives_is_refused(words, num_rows, has_negatives):
    with pytest.raises(InputError, match="one pair and no hard negatives has nothing to learn from; raise"):
        micro_batch_size(one_question_a_batch(*words), 1, num_rows, has_negatives)


@pytest.mark.parametrize("words", [["--hard_neg_ratio", "1"], ["--negatives_per_question", "2"]])
def test_a_batch_of_one_question_with_hard_negatives_is_not_refused(words):
    size, lines = micro_batch_size(one_question_a_batch(*words), 1, 900, True)
    assert size == 1 and "1 pairs, up to" in lines[0]


def test_a_batch_brings_a_share_of_hard_negatives_and_those_of_each_question():
    for words, drawn in (([], 2), (["--hard_neg_ratio", "0.02"], 0), (["--negatives_per_question", "3"], 122)):
        job = parse_job([*WORDS, *words])
        assert num_drawn(job, batch_of(job, 900)) == drawn


def test_hard_negatives_of_questions_that_have_none_are_refused():
    with pytest.raises(InputError, match="^--negatives_per_question 2: no training question has hard_neg_docs"):
        check_negatives(2, has_negatives=False)
    check_negatives(2, has_negatives=True)
    check_negatives(0, has_negatives=False)


def test_a_teacher_who_has_scored_nothing_is_refused():
    with pytest.raises(InputError, match=r"^--distill_weight 0\.5: no training question has hard_neg_scores"):
        check_teacher(0.5, has_scores=False)
    check_teacher(0.5, has_scores=True)
    check_teacher(0.0, has_scores=False)


def test_a_teachers_scores_are_divided_by_what_suits_their_range_unless_the_user_says_by_what():
    def found(*words: str, are_cosines: bool = True, resumed: float | None = None) -> float | None:
        job = with_teacher_temperature(parse_job([*WORDS, *words]), are_cosines, resumed)
        kept = job.to_config().get("teacher_temperature")  # what was derived would bind a run with other data
        assert kept == (job.settings.teacher_temperature if "--teacher_temperature" in words or resumed else None)
        return job.settings.teacher_temperature

    assert found() == 0.05 and found(are_cosines=False) == 1
    assert found("--teacher", "hybrid") == 1  # z-scores, whatever the training files have
    assert found("--teacher_temperature", "1") == 1 and found("--teacher_temperature", "2", resumed=1) == 2
    assert found(resumed=1) == 1


@pytest.mark.parametrize(("values", "found"), [("0,2", Choices((0, 2))), ("1:4", Range(1, 4, False, True))])
def test_a_search_over_their_number_is_refused_before_its_first_trial(values, found):
    search = parse_search([*WORDS, "--tune", f"negatives_per_question={values}"])
    assert search.space == {"negatives_per_question": found}
    plan = SearchPlan.of(search, search.job, 900)
    assert plan.describe_batches(1, has_negatives=True, has_scores=False)
    with pytest.raises(InputError, match=f"--negatives_per_question {values[-1]}: "):
        plan.describe_batches(1, has_negatives=False, has_scores=False)
    for words, is_taught in (([], False), (["--mine_negatives", "2", "--negatives_per_question", "1"], True)):
        search = parse_search([*WORDS, "--teacher", "hybrid", *words, "--tune", "distill_weight=0,0.5"])
        assert SearchPlan.of(search, search.job, 900).is_taught is is_taught
    plan = SearchPlan.of(search, search.job, 900)
    assert plan.describe_batches(1, has_negatives=True, has_scores=True)
    with pytest.raises(InputError, match="--distill_weight 0.5: no training question has hard_neg_scores"):
        plan.describe_batches(1, has_negatives=True, has_scores=False)


@pytest.mark.parametrize(
    ("words", "mines"),
    [
        (["--tune", "temperature=0.05,0.1"], False),
        (["--tune", "mine_negatives=0,4"], True),
        (["--mine_negatives", "8", "--tune", "mine_margin=0.9:1.1", "negatives_per_question=1:4"], True),
    ],
)
def test_a_search_mines_where_any_of_its_trials_does(words, mines):
    search = parse_search([*WORDS, *words])
    assert SearchPlan.of(search, search.job, 900).mines is mines


def test_few_pairs_are_seen_in_several_epochs_and_many_pairs_in_one():
    assert [steps_for(pairs, 64) for pairs in (16, 135, 574, 1_000, 13_155)] == [20, 20, 36, 63, 227]
    assert steps_for(64_000, 64) == 1_000 and steps_for(1_000_000, 64) == 15_625  # never less than one epoch
    assert steps_for(1_000_000, 2_048) == 489 and steps_for(4_000, 4) == 1_000  # of two epochs, only the first is sure
    assert steps_for(13_155, 256) == 57
    steps = [steps_for(pairs, 32) for pairs in range(10, 40_000, 97)]
    assert steps == sorted(steps)


def test_the_number_of_steps_follows_from_the_pairs_unless_the_user_gives_steps_or_epochs():
    for words, steps, said in (
        ([], 36, "; neither --max_steps nor --num_train_epochs is given"),
        (["--max_steps", "200"], 200, "epochs of 574"),
        (["--num_train_epochs", "2"], -1, "steps: 16, which are 1,024 pairs, 1.8 epochs of 574"),
        (["--gradient_accumulation_steps", "4"], 36, "is given"),
    ):
        job = with_steps(parse_job([*WORDS, "--global_batch_size", "64", *words]), 574)
        assert job.training["max_steps"] == steps
        assert any(line.endswith(said) for line in micro_batch_size(job, 1, 574, False)[1])
    assert with_steps(parse_job([*WORDS, "--global_batch_size", "1000"]), 300).training["max_steps"] == 20


def test_a_resumed_run_keeps_its_number_of_steps():
    assert with_steps(parse_job(WORDS), 574, resumed=50).training["max_steps"] == 50
    assert with_steps(parse_job(WORDS), 1_000, resumed=-1).training["max_steps"] == 100
    assert with_steps(parse_job([*WORDS, "--max_steps", "7"]), 574, resumed=50).training["max_steps"] == 7
