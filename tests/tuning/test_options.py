"""What users may ask of a search, and the messages about wrong requests."""

import json

import pytest

from rqa_ray.errors import InputError
from rqa_ray.reports.trials import Choices, Range
from rqa_ray.tuning.options import parse_search
from rqa_ray.tuning.space import check_optimizers, combinations

WORDS = ["--model_name_or_path", "m", "--demo_size", "100", "--output_dir", "out"]


def test_two_learning_rates_are_a_range_and_more_are_a_list():
    assert parse_search([*WORDS, "--tune_learning_rate", "1e-6", "1e-3"]).space == {
        "learning_rate": Range(1e-6, 1e-3, is_log=True, is_whole=False)
    }
    assert parse_search([*WORDS, "--tune_learning_rate", "1e-6", "1e-5", "1e-4"]).space == {
        "learning_rate": Choices((1e-6, 1e-5, 1e-4))
    }


def test_batch_sizes_are_a_list_even_if_they_are_two():
    assert parse_search([*WORDS, "--tune_batch_size", "32", "64"]).space == {"global_batch_size": Choices((32, 64))}


def test_any_numeric_or_choice_argument_can_be_searched():
    words = ["temperature=0.02:0.1:log", "hard_neg_ratio=0,0.1,0.5", "pooling_type=mean,cls", "warmup_ratio=0:0.2"]
    space = parse_search([*WORDS, "--tune", *words, "--tune", "weight_decay=0,0.1", "seed=1:9"]).space
    assert space == {
        "temperature": Range(0.02, 0.1, is_log=True, is_whole=False),
        "hard_neg_ratio": Choices((0.0, 0.1, 0.5)),
        "pooling_type": Choices(("mean", "cls")),
        "warmup_steps": Range(0.0, 0.2, is_log=False, is_whole=False),
        "weight_decay": Choices((0.0, 0.1)),
        "seed": Range(1, 9, is_log=False, is_whole=True),
    }


def test_a_search_is_repeated_by_its_config(tmp_path):
    words = ["--tune_learning_rate", "1e-6", "1e-3", "--tune", "temperature=0.02,0.05", "--num_samples", "3"]
    asked = parse_search([*WORDS, *words])
    (tmp_path / "search_args.json").write_text(json.dumps(asked.to_config()))
    again = parse_search([str(tmp_path / "search_args.json")])
    assert again.space == asked.space and again.settings == asked.settings and again.job == asked.job


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--tune", "temprature=1:2"],
            "temprature=1:2: temprature: unknown argument; did you mean temperature?",
        ),
        (["--tune", "compare=1:2"], "compare: unknown argument"),
        (["--tune", "label_names=a,b"], "label_names cannot be searched: there are no labels"),
        (["--tune", "debug=a,b"], "--debug takes a list, and a search varies single values"),
        (["--tune", "temperature"], "has to be NAME=A,B,C or NAME=LOW:HIGH"),
        (["--tune", "mine_depth=50,100"], "mine_depth cannot be searched: all trials share the candidates of BM25"),
        (["--tune", "recipe=plain,best"], "recipe cannot be searched: its flags are read before the search"),
        (["--tune", "finish=best,merge"], "finish cannot be searched: only the winner is finished"),
        (["--mine_negatives", "2", "--tune", "negatives_per_question=1,3"], "3: is more than --mine_negatives 2"),
        (["--tune", "temperature=0:1"], "--temperature 0: has to be above 0"),
        (["--tune", "temperature=0.1:0.02"], "the first end has to be below the second"),
        (["--tune", "hard_neg_ratio=0:1:log"], "has to begin above 0"),
        (["--tune", "temperature=0.1:0.2:exp"], "a range is LOW:HIGH or LOW:HIGH:log"),
        (["--tune", "temperature=warm,cold"], "'warm' is no value of --temperature"),
        (["--tune", "pooling_type=mean,middle"], "middle: choose one of mean, cls,"),
        (["--tune", "pooling_type=mean:cls"], "a range is LOW:HIGH or LOW:HIGH:log, of numbers"),
        (["--tune", "max_steps=10,20"], "every trial sees the same number of pairs"),
        (["--tune", "max_seq_length=128,256"], "it changes the tokenized data"),
        (["--tune", "batch_size=16,32"], "use --tune_batch_size"),
        (["--tune", "deepspeed=a,b"], "deepspeed cannot be searched: not supported"),
        (["--tune", "learning_rate=1,2", "--tune_learning_rate", "1", "2"], "leave one out"),
        (["--tune", "seed=1,2", "seed=3,4"], "seed is given twice"),
        (["--tune_learning_rate", "-1", "1e-3"], "--learning_rate -1: has to be at least 0"),
        (["--tune_batch_size", "1", "32"], "--global_batch_size 1: has to be at least 2"),
        (["--num_samples", "0"], "--num_samples 0: has to be at least 1"),
        (["--time_budget_s", "0"], "--time_budget_s 0: has to be above 0"),
        (["--max_concurrent_trials", "many"], "has to be auto, or a number from 1 on"),
        (
            ["--search_alg", "grid", "--tune_learning_rate", "1e-6", "1e-3"],
            "needs lists, and learning_rate is a range",
        ),
        (["--resume_from_checkpoint", "true"], "a search goes on by --resume"),
        (["--tune", "temperature=0.02,0.05", "--metric_for_best_model", "eval_loss"], "eval_loss depends on it"),
        (["--async_eval"], "leave it out in a search"),
        (["--tune_temperature", "1"], "--tune_temperature: unknown argument"),
    ],
)
def test_a_wrong_wish_is_one_line_that_says_what_to_do(words, said):
    with pytest.raises(InputError) as error:
        parse_search([*WORDS, *words])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_value_from_which_no_schedule_can_be_built_is_refused():
    def check(values: str, *words: str) -> None:
        search = parse_search([*WORDS, *words, "--tune", f"lr_scheduler_type={values}"])
        check_optimizers(search.space, search.job)

    check("linear,cosine")
    check("cosine_with_min_lr,cosine_warmup_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 0}')
    with pytest.raises(InputError, match="^--lr_scheduler_type cosine_with_min_lr: cannot be used: .* min_lr"):
        check("cosine,cosine_with_min_lr")


def test_a_space_of_lists_has_an_end_and_a_range_has_none():
    lists = {"a": Choices((1, 2)), "b": Choices(("x", "y", "z"))}
    assert len(combinations(lists)) == 6 and combinations(lists)[1] == {"a": 1, "b": "y"}
    assert combinations(lists | {"c": Range(0, 1, False, False)}) is None


def test_a_search_over_shares_reads_all_pairs_and_ends_no_trial_early():
    search = parse_search([*WORDS, "--train_share", "0.3", "--tune", "train_share=0.25,0.5,1"])
    assert search.job.settings.train_share == 1 and search.settings.scheduler == "none"
    assert search.job.notes[-1].startswith("note: --scheduler none: the learning curve needs every trial")
    asked = ["--train_share", "1", "--tune", "train_share=0.5,1", "--scheduler", "none"]
    assert not parse_search([*WORDS, *asked]).job.notes
    with pytest.raises(InputError, match="^--tune train_share=LOW:HIGH: has to be a list, such as"):
        parse_search([*WORDS, "--tune", "train_share=0.2:1"])
