"""How the command line and the JSON config become a job; every mistake in them gives one line."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from rqa_ray.errors import InputError
from rqa_ray.ray_environment import forget_accelerate
from rqa_ray.settings import TrainSettings
from rqa_ray.stops import user_errors
from rqa_ray.training.arguments import ALIASES, NO_EFFECT, REFUSED, RetrieverTrainingArguments, UsualArguments
from rqa_ray.training.job import RECIPES, parse_job

# LocalRQA's documented commands, as they are but for the paths of the second.
FAIRE = """
    --full_dataset_file_path documents.pkl --train_file train_w_q.jsonl --eval_file eval_w_q.jsonl
    --model_name_or_path intfloat/e5-base-v2 --pooling_type mean --learning_rate 1e-4
    --per_device_train_batch_size 256 --per_device_eval_batch_size 128 --hard_neg_ratio 0.05
    --metric_for_best_model eval_retr/document_recall/recall4 --output_dir model_checkpoints/my_CTL_ret_model
""".split()
DATABRICKS = """
    --pooling_type mean --learning_rate 1e-5 --per_device_train_batch_size 256 --per_device_eval_batch_size 128
    --hard_neg_ratio 0.05 --metric_for_best_model eval_retr/document_recall/recall4
    --model_name_or_path BAAI/bge-base-en-v1.5 --max_steps 100 --eval_steps 2 --save_steps 2 --logging_steps 1
    --temperature 1.2 --output_dir D --train_file train_w_q.jsonl --eval_file eval_w_q.jsonl
    --test_file test_w_q.jsonl --full_dataset_file_path documents.pkl
""".split()
MINIMAL = """
    --model_name_or_path m --train_file t.jsonl --eval_file e.jsonl --full_dataset_file_path d.pkl --output_dir out
""".split()


def parse(extra: str = ""):
    return parse_job([*MINIMAL, *extra.split()])


def error_of(argv: list[str]) -> str:
    with pytest.raises(InputError) as error:
        parse_job(argv)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def config(tmp_path, value) -> str:
    path = tmp_path / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


# Commands


@pytest.mark.parametrize("name", ["demo", "faire", "medquad"])
def test_the_configs_of_the_examples_are_arguments_of_training(name):
    job = parse_job([str(Path(__file__).parents[2] / "jobs" / f"{name}.json")])
    assert job.output_dir.startswith("output/"), "which git and Ray leave alone"
    files = [file for flag in job.settings.given_files() for file in getattr(job.settings, flag)]
    assert all(file.startswith("output/") for file in files)


def test_localrqas_first_documented_command_parses_to_its_values_without_notes():
    job = parse_job(FAIRE)
    assert job.notes == []
    assert job.output_dir == "model_checkpoints/my_CTL_ret_model"
    assert job.settings == TrainSettings(
        model_name_or_path="intfloat/e5-base-v2",
        train_file=["train_w_q.jsonl"],
        eval_file=["eval_w_q.jsonl"],
        full_dataset_file_path=["documents.pkl"],
        pooling_type="mean",
        hard_neg_ratio=0.05,
    )
    assert job.training["learning_rate"] == 1e-4
    assert job.training["per_device_train_batch_size"] == 256
    assert job.training["per_device_eval_batch_size"] == 128
    assert job.training["metric_for_best_model"] == "eval_retr/document_recall/recall4"


def test_localrqas_second_documented_command_parses_with_a_word_on_saving_and_on_its_temperature():
    job = parse_job(DATABRICKS)
    assert (job.settings.test_file, job.settings.temperature) == (["test_w_q.jsonl"], 1.2)
    assert {name: job.training[name] for name in ("max_steps", "eval_steps", "logging_steps")} == {
        "max_steps": 100,
        "eval_steps": 2,
        "logging_steps": 1,
    }
    assert len(job.notes) == 2
    assert job.notes[0].startswith("--save_steps has no effect: saving follows evaluation")
    assert job.notes[1].startswith("warning: --temperature 1.2 leaves a nearly flat loss with cosine")


def test_the_defaults_are_those_of_the_contract():
    job = parse()
    assert job.training == {
        "output_dir": "out",
        "learning_rate": 1e-5,
        "max_steps": -1,
        "per_device_train_batch_size": 256,
        "per_device_eval_batch_size": 128,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "logging_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "metric_for_best_model": "eval_retr/document_recall/recall4",
        "report_to": "tensorboard",
        "seed": 42,
    }
    given = ("model_name_or_path", "train_file", "eval_file", "full_dataset_file_path")
    own = {key: value for key, value in dataclasses.asdict(job.settings).items() if value is not None}
    assert {key: value for key, value in own.items() if key not in given} == {
        "homogeneous_batches": False,
        "train_share": 1.0,
        "temperature": 0.05,
        "hard_neg_ratio": 0.05,
        "negatives_per_question": 0,
        "distill_weight": 0.0,
        "mine_negatives": 0,
        "mine_margin": 0.95,
        "mine_depth": 100,
        "contrastive_loss": "inbatch_contrastive",
        "gradient_cache": "auto",
        "data_mode": "auto",
        "async_eval": False,
        "finish": "best",
        "on_bad_record": "error",
        "recipe": "plain",
        "trust_remote_code": False,
        "overwrite_output_dir": False,
        "write_predictions": True,
        "predictions_top_k": 10,
        "save_adapter": False,
        "json": False,
        "symmetric_loss": False,
        "learn_temperature": False,
    }
    assert (job.resume, job.notes, job.accumulation_steps) == (None, [], 1)


def test_arguments_of_transformers_are_passed_on_only_when_given():
    assert "max_grad_norm" not in parse().training
    assert (
        parse("--max_grad_norm 2 --bf16").training | {"max_grad_norm": 2.0, "bf16": True}
        == parse("--max_grad_norm 2 --bf16").training
    )


def test_epochs_have_no_effect_beside_steps_which_is_said():
    assert parse("--num_train_epochs 3").training["max_steps"] == -1
    both = parse("--num_train_epochs 3 --max_steps 7")
    assert both.training["max_steps"] == 7 and "num_train_epochs" in both.notes[0]


def test_a_flag_may_be_switched_off_in_transformers_two_ways():
    assert parse("--no_log_on_each_node").training["log_on_each_node"] is False
    assert parse("--log_on_each_node false").training["log_on_each_node"] is False
    assert parse("--no_write_predictions").settings.write_predictions is False


def test_dashes_in_a_name_are_as_good_as_underscores():
    assert parse("--learning-rate 3e-5 --hard-neg-ratio 0.2 --save-steps=7 --warmup-ratio=0.2") == parse(
        "--learning_rate 3e-5 --hard_neg_ratio 0.2 --save_steps 7 --warmup_ratio 0.2"
    )


@pytest.mark.parametrize(
    ("words", "resume"),
    [("", None), ("true", "true"), ("True", "true"), ("false", None), ("out/checkpoint-4", "out/checkpoint-4")],
)
def test_resuming_is_asked_for_by_true_or_by_a_folder(words, resume):
    assert parse(f"--resume_from_checkpoint {words}" if words else "").resume == resume


def test_the_built_in_data_takes_the_place_of_files():
    job = parse_job("--model_name_or_path m --output_dir o --demo_size 100".split())
    assert job.settings.demo_size == 100


def help_of(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as screen, pytest.raises(SystemExit) as stop:
        parse_job([*words])
    assert stop.value.code == 0
    return screen.getvalue()


def test_a_short_help_has_own_settings_and_the_usual_ones_of_transformers():
    text = help_of("-h")
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    fields = dataclasses.fields(TrainSettings)
    all_fields = [*fields, *dataclasses.fields(RetrieverTrainingArguments)]
    rare = {field.name for field in all_fields if field.metadata.get("is_rare")}
    assert rare > {"run_project", "lora_r", "matryoshka_dims", "query_prompt_name", "fsdp"}
    of_trainer = set(RetrieverTrainingArguments.__annotations__) | set(UsualArguments.__annotations__)
    assert ({field.name for field in fields} | of_trainer) - rare == shown
    assert text.splitlines()[-1] == (
        "-h all adds --eval_share, --homogeneous_batches, --json, LoRA, Matryoshka, and TrainingArguments."
    )
    assert help_of("--help") == text


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_the_whole_help_has_every_argument_and_says_which_are_not_what_they_are_in_transformers(word):
    text = " ".join(help_of(word, "all").split())
    assert " --run_project TEXT " in text
    for item in dataclasses.fields(TrainingArguments):
        assert f" --{item.name} " in text
    for name, reason in REFUSED.items():
        assert f" --{name} refused: {reason} " in text
    for name, reason in NO_EFFECT.items():
        assert f" --{name} no effect: {reason} " in text
    for name, (_, why) in ALIASES.items():
        assert f" --{name} {why} --" in f"{text} --"


def test_the_usual_arguments_keep_the_defaults_of_transformers():
    defaults = {item.name: item.default for item in dataclasses.fields(TrainingArguments)}
    for item in dataclasses.fields(UsualArguments):
        assert item.default == defaults[item.name]


# Configs


def test_flags_override_the_config(tmp_path):
    values = dict(zip((word[2:] for word in MINIMAL[::2]), MINIMAL[1::2], strict=True))
    path = config(tmp_path, {**values, "learning_rate": 3e-5, "seed": 7, "trust_remote_code": True})
    job = parse_job([path, "--seed", "8", "--output_dir=other"])
    assert (job.training["learning_rate"], job.training["seed"], job.output_dir) == (3e-5, 8, "other")
    assert job.settings.trust_remote_code is True


def test_null_in_a_config_is_as_good_as_nothing(tmp_path):
    assert parse_job([config(tmp_path, {"eval_steps": None, "dropout": None}), *MINIMAL]) == parse()


def test_old_names_in_a_config_are_translated_too(tmp_path):
    job = parse_job([config(tmp_path, {"warmup_ratio": 0.2, "group_by_length": True, "seed": 3}), *MINIMAL])
    assert (job.training["warmup_steps"], job.training["seed"]) == (0.2, 3)
    assert len(job.notes) == 2


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "not JSON (Expecting property name"),
        ("[1]", "has to be an object of argument names and values"),
    ],
)
def test_a_config_that_is_not_an_object_is_named(tmp_path, content, wrong):
    path = config(tmp_path, content)
    assert error_of([path]).startswith(f"{path}: {wrong}")


def test_a_config_that_is_not_there_is_named():
    assert error_of(["nowhere.json"]) == "nowhere.json: cannot be read (No such file or directory)"


def test_an_unknown_name_in_a_config_is_named_with_the_likely_one(tmp_path):
    path = config(tmp_path, {"temprature": 1})
    assert error_of([path, *MINIMAL]) == f"{path}: temprature: unknown argument; did you mean temperature?"


TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text != "--")
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "query_prefix": TEXT,
        "passage_prefix": st.sampled_from(["query: ", "-1", "--seed", "a=b", "true", "null"]),
        "temperature": st.floats(1e-6, 10),
        "hard_neg_ratio": st.floats(0, 5),
        "pooling_type": st.sampled_from(["mean", "cls", "last", "max"]),
        "gradient_cache": st.sampled_from(["auto", "true", "false", True, False, "0.3", 0.25, 1]),
        "trust_remote_code": st.booleans(),
        "write_predictions": st.booleans(),
        "global_batch_size": st.integers(2, 10**6),
        "learning_rate": st.floats(0, 1),
        "warmup_steps": st.floats(0, 100),
        "eval_steps": st.floats(1e-3, 0.99) | st.integers(1, 100),
        "eval_strategy": st.sampled_from(["steps", "epoch", "no"]),
        "bf16": st.booleans(),
        "log_on_each_node": st.booleans(),
        "lr_scheduler_kwargs": st.just({"num_cycles": 0.5}),
        "overwrite_output_dir": st.booleans(),
        "warmup_ratio": st.floats(0, 1),
    },
)


@settings(max_examples=20)
@given(CONFIGS)
def test_the_config_that_a_job_writes_parses_to_the_same_job(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("config")
    job = parse_job([config(folder, values), *MINIMAL])
    again = parse_job([config(folder, job.to_config())])
    assert again.settings == dataclasses.replace(job.settings, overwrite_output_dir=False)
    assert again.training == job.training
    assert again.to_config() == job.to_config()


def test_a_written_config_neither_deletes_nor_resumes_a_run_nor_prints_json():
    written = parse("--overwrite_output_dir --resume_from_checkpoint true --json").to_config()
    assert not {"overwrite_output_dir", "resume_from_checkpoint", "json"} & written.keys()


def test_true_resumes_a_run_and_is_no_folder():
    needed = {"model_name_or_path": "m", "demo_size": 9}
    assert parse_job({**needed, "output_dir": "out", "resume_from_checkpoint": True}).resume == "true"
    with pytest.raises(InputError, match="^output_dir True: has to be a path"):
        parse_job({**needed, "output_dir": True})


# Old, refused and idle names


@pytest.mark.parametrize(
    ("words", "successor", "value"),
    [
        ("--evaluation_strategy epoch", "eval_strategy", "epoch"),
        ("--warmup_ratio 0.25", "warmup_steps", 0.25),
        ("--warmup_ratio=0.25", "warmup_steps", 0.25),
        ("--no_cuda", "use_cpu", True),
        ("--no_cuda true", "use_cpu", True),
    ],
)
def test_a_name_that_transformers_dropped_sets_its_successor_with_a_note(words, successor, value):
    job = parse(words)
    assert job.training[successor] == value
    assert [note.split(",")[0] for note in job.notes] == [f"{words.split()[0].split('=')[0]} is now --{successor}"]


@pytest.mark.parametrize("words", ["--group_by_length", "--group_by_length true", "--save_safetensors=false"])
def test_a_dropped_name_without_successor_changes_nothing_but_for_a_note(words):
    job = parse(f"{words} --seed 3")
    assert job.training == parse("--seed 3").training
    assert len(job.notes) == 1 and " has no effect: " in job.notes[0]


REFUSED_VALUES = {
    "auto_find_batch_size": "true",
    "label_smoothing_factor": "0.1",
    "neftune_noise_alpha": "5",
    "use_liger_kernel": "true",
    "deepspeed": "zero3.json",
    "fsdp_config": "fsdp.json",
    "push_to_hub": "true",
    "save_only_model": "true",
    "enable_jit_checkpoint": "true",
    "include_num_input_tokens_seen": "true",
    "torch_empty_cache_steps": "4",
}


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "parallelism_config"])  # which no word makes
def test_an_argument_that_does_not_fit_is_refused_with_the_reason(name):
    message = error_of([*MINIMAL, f"--{name}={REFUSED_VALUES[name]}"])
    assert message.startswith(f"--{name} ")
    assert message.endswith(f": {REFUSED[name]}")


@pytest.mark.parametrize("words", ["--push_to_hub false", "--label_smoothing_factor 0", "--auto_find_batch_size no"])
def test_a_refused_argument_may_say_that_it_is_off(words):
    assert parse(words) == parse()


@pytest.mark.parametrize("name", NO_EFFECT)
def test_an_argument_without_effect_is_noted_and_not_passed_on(name):
    default = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}[name]
    value = {"dataloader_multiprocessing_context": "fork", "ddp_backend": "gloo"}.get(name, default)
    value = value if isinstance(value, (bool, int, float, str)) else 1
    job = parse(f"--{name}={value}")
    assert job.training == parse().training
    assert job.notes == [f"--{name} has no effect: {NO_EFFECT[name]}"]


def test_an_argument_without_effect_is_noted_when_switched_off_too():
    assert parse("--no_logging_nan_inf_filter").notes == [
        f"--logging_nan_inf_filter has no effect: {NO_EFFECT['logging_nan_inf_filter']}"
    ]


def test_the_names_that_are_translated_refused_or_idle_are_names_of_transformers():
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    successors = {successor for successor, _ in ALIASES.values() if successor}
    assert REFUSED.keys() | NO_EFFECT.keys() | successors <= names
    assert not names & ALIASES.keys()
    assert not REFUSED.keys() & NO_EFFECT.keys()


def test_own_settings_do_not_hide_names_of_transformers():
    assert not {field.name for field in dataclasses.fields(TrainSettings)} & {
        field.name for field in dataclasses.fields(TrainingArguments)
    }


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--temprature 1", "--temprature: unknown argument; did you mean --temperature?"),
        ("--hard_negatives=3", "--hard_negatives: unknown argument; did you mean --hard_neg_ratio?"),
        ("--evaluation-stratgy 1", "--evaluation-stratgy: unknown argument; did you mean --evaluation-strategy?"),
        ("--xyzzy", "--xyzzy: unknown argument (-h all lists all arguments)"),
        ("stray", "stray: unknown argument (-h all lists all arguments)"),
        ("--temp 1", "--temp: unknown argument"),  # no abbreviations: they break when names are added
        ("--learning_rate fast", "--learning_rate: 'fast' is no number"),
        ("--early_stopping_patience -1", "--early_stopping_patience -1: has to be at least 0"),
        (
            "--early_stopping_patience 2 --async_eval",
            "--early_stopping_patience: an evaluation of --async_eval ends too late to stop training",
        ),
        ("--max_steps 1.5", "--max_steps: '1.5' is no whole number"),
        ("--eval_file", "--eval_file: a value is missing"),
        (
            "--trust_remote_code maybe",
            "--trust_remote_code: maybe is neither true nor false",
        ),
        ("--pooling_type sum", "--pooling_type sum: choose one of mean, cls, "),
        ("--contrastive_loss kl", "--contrastive_loss kl: choose one of inbatch_contrastive"),
        ("--eval_strategy step", "--eval_strategy step: did you mean steps? choose one of no, steps, epoch"),
        ("--lr_scheduler_type flat", "--lr_scheduler_type flat: choose one of linear, cosine, "),
        ("--temperature 0", "--temperature 0: has to be above 0"),
        ("--temperature nan", "--temperature nan: has to be above 0"),
        ("--hard_neg_ratio -0.1", "--hard_neg_ratio -0.1: has to be at least 0"),
        ("--max_seq_length 3", "--max_seq_length 3: has to be at least 4"),
        ("--dropout 1", "--dropout 1: has to be from 0 to below 1"),
        ("--global_batch_size 1", "--global_batch_size 1: has to be at least 2"),
        ("--max_tokens_per_chunk 0", "--max_tokens_per_chunk 0: has to be at least 1"),
        (
            "--gradient_cache 1.5",
            "--gradient_cache 1.5: has to be auto, true, false, or a share from 0 to 1",
        ),
        (
            "--gradient_cache half",
            "--gradient_cache half: has to be auto, true, false, or a share from 0 to 1",
        ),
        ("--num_workers 0", "--num_workers 0: has to be at least 1"),
        ("--cpus_per_worker 0", "--cpus_per_worker 0: has to be at least 1"),
        ("--max_failures -2", "--max_failures -2: has to be at least -1"),
        ("--max_steps 0", "--max_steps 0: has to be at least 1, or -1"),
        ("--learning_rate -1", "--learning_rate -1: has to be at least 0"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: has to be at least 1"),
        ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size 0: has to be at least 1"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: has to be at least 1"),
        ("--logging_steps 0", "--logging_steps 0: has to be above 0"),
        ("--eval_steps 0", "--eval_steps 0: has to be a fraction above 0, or a whole number"),
        ("--warmup_steps -1", "--warmup_steps -1: has to be at least 0"),
        ("--seed -1", "--seed -1: has to be from 0 to 4294967295"),
        (f"--seed {2**63}", f"--seed {2**63}: has to be from 0 to 4294967295"),
        ("--data_seed -1", "--data_seed -1: has to be from 0 to 4294967295"),
        ("--hard_neg_ratio inf", "--hard_neg_ratio inf: has to be a finite number"),
        ("--temperature inf", "--temperature inf: has to be a finite number"),
        ("--learning_rate inf", "--learning_rate inf: has to be a finite number"),
        ("--num_train_epochs nan", "--num_train_epochs nan: has to be above 0"),
        ("--num_train_epochs inf", "--num_train_epochs inf: has to be a finite number"),
        ("--num_train_epochs 0", "--num_train_epochs 0: has to be above 0"),
        ("--weight_decay nan", "--weight_decay nan: has to be at least 0"),
        ("--max_grad_norm nan", "--max_grad_norm nan: has to be at least 0"),
        ("--max_grad_norm -1", "--max_grad_norm -1: has to be at least 0"),
        ("--adam_epsilon -1", "--adam_epsilon -1: has to be at least 0"),
        ("--adam_beta2 1", "--adam_beta2 1: has to be from 0 to below 1"),
        ("--eval_delay nan", "--eval_delay nan: has to be a finite number"),
        ("--ddp_timeout 0", "--ddp_timeout 0: has to be at least 1"),
        ("--bf16 --fp16", "--bf16 and --fp16: choose one"),
        ("--matryoshka_dims 0 8", "--matryoshka_dims 0: has to be at least 1"),
        ("--matryoshka_dims 8 16 8", "--matryoshka_dims: 8 is given twice"),
        (
            "--matryoshka_dims 8 4 --matryoshka_weights 1",
            "--matryoshka_weights: give one for each of --matryoshka_dims, not 1 for 2",
        ),
        ("--matryoshka_weights 1 2", "--matryoshka_weights: give one for each of --matryoshka_dims, not 2 for 0"),
        ("--matryoshka_dims 8 --matryoshka_weights 0", "--matryoshka_weights 0: has to be above 0"),
        (
            "--learn_temperature --temperature 0.005",
            "--learn_temperature: begins at --temperature 0.005, which has to be from 0.01 to 100",
        ),
        (
            "--learn_temperature --metric_for_best_model eval_loss",
            "--learn_temperature: eval_loss depends on it; choose another --metric_for_best_model",
        ),
        ("--negatives_per_question -1", "--negatives_per_question -1: has to be at least 0"),
        ("--mine_every 0.3", "--mine_every 0.3: needs --mine_negatives N"),
        ("--mine_every 1", "--mine_every 1: has to be a fraction between 0 and 1"),
        (
            "--mine_negatives 4 --hard_neg_ratio 0",
            "--mine_negatives 4: no batch would have them; give --negatives_per",
        ),
        (
            "--mine_negatives 4 --negatives_per_question 5",
            "--negatives_per_question 5: is more than --mine_negatives 4",
        ),
        ("--distill_weight 1.5", "--distill_weight 1.5: has to be from 0 to 1"),
        ("--mine_negatives 4 --distill_weight 0.5", "--distill_weight 0.5: needs --teacher hybrid beside --mine_neg"),
        ("--teacher some/folder", "--teacher some/folder: training itself can only ask hybrid; run jobs/mine.py"),
        ("--mine_negatives 4 --mine_from sparse", "--mine_from sparse: has to be dense or bm25"),
        ("--demo_size 9", "--demo_size makes its own data: leave out --train_file, or --demo_size"),
        ("--output_dir=", "--output_dir is missing: "),
        ("--num_workers 3:2", "--num_workers 3:2: has to be at least 1, or a range such as 2:8"),
        ("--model_name_or_path=", "--model_name_or_path is missing: "),
        ("--train_file=", "--train_file is missing"),
        ("--eval_file=", "--eval_file is missing; --eval_share 0.1 holds out a tenth of the training questions"),
        ("--eval_share 0.1", "--eval_share 0.1: --eval_file has the eval questions; leave out one"),
        ("--eval_file= --eval_share 1", "--eval_share 1: has to be above 0 and below 1"),
        ("--homogeneous_batches --data_mode streaming", "--homogeneous_batches: streamed batches mix all files"),
        ("--full_dataset_file_path=", "--full_dataset_file_path is missing"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(words, message):
    assert error_of([*MINIMAL, *words.split()]).startswith(message)


def test_settings_of_mining_without_mining_are_noted():
    assert parse("--mine_margin 0.9 --mine_from dense").notes == [
        "--mine_margin, --mine_from: no effect without --mine_negatives"
    ]
    assert parse("--mine_margin 0.9 --mine_negatives 4").notes == []
    assert parse("--teacher hybrid").notes == ["--teacher: no effect without --mine_negatives"]
    assert parse("--mine_negatives 4 --teacher hybrid --distill_weight 1 --negatives_per_question 2").notes == []
    assert "few questions of a batch meet the hard" in parse("--distill_weight 0.5").notes[0]
    assert "every round of --mine_every is used" in parse("--mine_negatives 4 --mine_every 0.3 --async_eval").notes[0]


def test_bm25_is_asked_for_candidates_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = error_of([*MINIMAL, "--mine_negatives", "4"])
    assert found.startswith("--mine_negatives 4 without --mine_from dense: needs bm25s: pip install")
    assert parse("--mine_negatives 4 --mine_from dense").settings.mine_from == ["dense"]


def test_lora_is_asked_for_only_where_peft_is_installed_and_with_its_rank(monkeypatch):
    assert parse("--lora_alpha 8 --save_adapter true").notes == [
        "--lora_alpha, --save_adapter: no effect without --lora_r"
    ]
    assert error_of([*MINIMAL, "--lora_r", "0"]) == "--lora_r 0: has to be at least 1"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert error_of([*MINIMAL, "--lora_r", "4"]) == '--lora_r 4: needs peft: pip install -e ".[lora]"'
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert parse("--lora_r 4 --learning_rate 1e-4").notes == []
    assert parse("--lora_r 4").notes == ["warning: --learning_rate 1e-05 is low for LoRA; 1e-4 to 1e-3 is usual"]


def test_a_value_with_line_breaks_does_not_break_the_line():
    assert "'a\\nb'" in error_of([*MINIMAL, "--seed", "a\nb"])


def test_nothing_at_all_asks_for_the_output_folder():
    assert error_of([]) == "--output_dir is missing: say where the fine-tuned model goes"


def test_a_word_before_the_flags_is_a_config_or_wrong():
    assert error_of(["train", *MINIMAL]).startswith("train: not an argument; the first word is a .json config")


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("eval_retr/document_recall/recall5", "no such metric"),
        ("accuracy", "no such metric"),
        ("eval_retr/latency/avg_latency", "no such metric"),
        ("test_retr/document_recall/recall4", "test never selects"),
        ("test_loss", "test never selects"),
    ],
)
def test_a_metric_that_cannot_choose_the_best_model_is_refused_with_those_that_can(metric, reason):
    message = error_of([*MINIMAL, "--metric_for_best_model", metric])
    assert message.startswith(f"--metric_for_best_model {metric}: {reason}; ")
    assert "choose one of eval_retr/document_recall/recall1, " in message
    assert message.endswith("eval_loss")
    assert "latency" not in message.split("choose one of")[1]


@pytest.mark.parametrize("metric", ["retr/document_mrr/mrr10", "loss", "eval_loss"])
def test_a_metric_may_be_named_without_its_split(metric):
    assert parse(f"--metric_for_best_model {metric}").training["metric_for_best_model"] == (
        "eval_" + metric.removeprefix("eval_")
    )


def test_the_job_prints_one_line_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise InputError("--seed -1: has to be at least 0")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: --seed -1: has to be at least 0\n")


def test_what_accelerate_would_take_from_the_environment_changes_nothing_and_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert [note.split(":")[0] for note in parse().notes] == [
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 has no effect",
        "ACCELERATE_MIXED_PRECISION=bf16 has no effect",
    ]
    assert RetrieverTrainingArguments(output_dir=str(tmp_path), use_cpu=True).mixed_precision == "bf16"
    forget_accelerate()
    assert RetrieverTrainingArguments(output_dir=str(tmp_path), use_cpu=True).mixed_precision == "no"


# The temperature


@pytest.mark.parametrize(
    ("words", "warns"),
    [
        ("--temperature 0.05", False),
        ("--temperature 0.49", False),
        ("--temperature 0.5", True),
        ("--temperature 1 --similarity cosine", True),
        ("--temperature 1 --similarity dot", False),
    ],
)
def test_a_temperature_that_flattens_the_loss_is_warned_of_with_cosine_similarity_only(words, warns):
    notes = parse(words).notes
    assert len(notes) == warns
    assert all(note.startswith("warning: --temperature ") and "--similarity dot" in note for note in notes)


# Parsing only parses

WATCHED = """
import sys
from rqa_ray.training.job import RECIPES, parse_job
called = []
def watch(frame, event, arg):
    if event == "call" and frame.f_code.co_filename.endswith("torch/cuda/__init__.py"):
        called.append(frame.f_code.co_name)
sys.setprofile(watch)
parse_job(sys.argv[1:])
sys.setprofile(None)
import torch
print("ray" in sys.modules, torch.cuda.is_initialized(), called)
"""


def test_parsing_looks_for_no_gpu_and_imports_no_ray():
    done = subprocess.run([sys.executable, "-c", WATCHED, *FAIRE], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False False []"


def test_the_recipe_best_is_a_file_of_flags_that_the_users_flags_override():
    flags = json.loads(RECIPES["best"].read_text())
    words = ["--model", "a", "--output_dir", "b", "--demo_size", "9"]
    plain, best = parse_job(words), parse_job([*words, "--recipe", "best"])
    own = parse_job([*words, "--learning_rate=3e-5", "--recipe=best", "--mine_negatives", "2"])
    assert plain.settings.mine_negatives == 0
    for name, value in flags.items():
        assert {**vars(best.settings), **best.training}[name] == value
    assert own.training["learning_rate"] == 3e-5 and own.settings.mine_negatives == 2
    assert own.settings.negatives_per_question == flags["negatives_per_question"]
    own = parse_job([*words, "--recipe", "best", "--per_device_train_batch_size", "16", "--async_eval"])
    assert own.settings.global_batch_size is None and own.training["per_device_train_batch_size"] == 16
    assert own.settings.early_stopping_patience is None and own.settings.mine_negatives == flags["mine_negatives"]
    assert parse_job({**own.to_config()}).to_config() == own.to_config()


OFF = {  # each flag of the recipe, and the user's value that switches it off; for None, another flag does
    "global_batch_size": None,
    "learning_rate": 1e-5,
    "dropout": 0.1,
    "mine_negatives": 0,
    "negatives_per_question": 0,
    "hard_neg_ratio": 0.05,
    "finish": "none",
    "metric_for_best_model": "eval_retr/document_recall/recall4",
    "early_stopping_patience": 0,
}


def test_each_flag_of_the_recipe_can_be_switched_off_alone():
    assert OFF.keys() == json.loads(RECIPES["best"].read_text()).keys()
    words = ["--model", "a", "--output_dir", "b", "--demo_size", "9", "--recipe", "best"]
    for name, value in OFF.items():
        if value is not None:
            job = parse_job([*words, f"--{name}", str(value)])
            assert {**vars(job.settings), **job.training}[name] == value


@pytest.mark.parametrize(
    ("given", "mined", "own"),
    [
        (["--mine_negatives", "0"], 0, 0),
        (["--mine_negatives=0", "--negatives_per_question=2"], 0, 2),  # those of the training files
        (["--negatives_per_question", "0"], 0, 0),
        (["--negatives_per_question", "0", "--hard_neg_ratio", "0.1"], 4, 0),
        (["--negatives_per_question", "2"], 4, 2),
    ],
)
def test_a_recipe_without_its_mining_asks_for_no_hard_negatives(given, mined, own):
    words = ["--model", "a", "--output_dir", "b", "--demo_size", "9", "--recipe", "best"]
    settings = parse_job([*words, *given]).settings
    assert (settings.mine_negatives, settings.negatives_per_question) == (mined, own)


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="^--recipe bets: did you mean best. choose one of plain, best$"):
        parse_job(["--recipe", "bets"])
