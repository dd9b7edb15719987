"""Missing things are found before anything starts."""

import json
from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.training.arguments import check_report_to, loggers_of
from rqa_ray.training.job import parse_job
from rqa_ray.training.setup import set_up
from tests.conftest import write_lines

JOB = ["--model_name_or_path", "m", "--output_dir", "out", "--demo_size", "9", "--report_to"]


@pytest.mark.parametrize("log", ["wandb", "no-such-log"])
def test_a_log_that_is_not_installed_is_refused(log, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(InputError, match=f"^--report_to {log}: is not installed here, or is not known"):
        check_report_to(parse_job([*JOB, log]).training)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_instructions_of_the_training_files_become_prompts_of_the_model(
    ray_cluster, files, train_flags, tmp_path, mode, capsys
) -> None:
    names = {"nq": "Find: ", "msmarco": "Rank: "}
    for name, text in names.items():
        lines = Path(files["train_file"]).read_text().splitlines()
        write_lines(tmp_path / f"{name}.jsonl", [json.loads(line) | {"instruction": text} for line in lines])
    given = [str(tmp_path / f"{name}.jsonl") for name in names]
    more = ["--train_file", *given, "--data_mode", mode, "--output_dir", str(tmp_path / "out")]
    setup = set_up(parse_job([*train_flags, *more]), "all_args.json")
    assert dict(setup.model.prompts) == names
    assert " the saved model has them as prompts: nq, msmarco\n" in capsys.readouterr().out


def test_an_installed_log_or_none_is_taken(monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    for log in ("tensorboard", "none", "wandb", "all", "tensorboard,wandb"):
        check_report_to(parse_job([*JOB, log]).training)


def test_several_logs_have_commas_or_spaces_between_them():
    for several in ("tensorboard,wandb", "tensorboard wandb", "tensorboard, wandb"):
        assert loggers_of({"report_to": several}) == ["tensorboard", "wandb"]
    assert loggers_of({"report_to": "none"}) == loggers_of({"report_to": ""}) == ["none"]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_an_eval_share_is_held_out_of_the_training_files(
    ray_cluster, files, train_flags, tmp_path, mode, capsys
) -> None:
    lines = [json.loads(line) for line in Path(files["train_file"]).read_text().splitlines()]
    given = [write_lines(tmp_path / f"{part}.jsonl", lines[part::12]) for part in range(12)]  # some only for one side
    with open(given[0], "a") as file:
        file.write("no record\n")
    place = train_flags.index("--eval_file")
    flags = [*train_flags[:place], *train_flags[place + 2 :], "--eval_share", "0.25", "--train_file", *given]
    flags += ["--on_bad_record", "skip", "--data_mode", mode, "--output_dir", str(tmp_path / "out")]
    setup = set_up(parse_job(flags), "all_args.json")
    asked = AskedQuestions(setup.blocks["eval"].tables()).questions
    number = len(asked)
    assert 8 <= number <= 16 and f"eval: {number} of the 48 questions of train_file, from " in capsys.readouterr().out
    sides: dict[bool, list] = {True: [], False: []}
    for line in lines:
        sides[line["questions"][0] in asked].append(line)
    golds = {
        side: {gold["metadata"]["source"] for one in of for gold in one["gold_docs"]} for side, of in sides.items()
    }
    assert not golds[True] & golds[False] and 2 * len(sides[True]) == number
    assert setup.num_rows == sum(2 * len(line["gold_docs"]) for line in sides[False])
    assert sum(setup.skipped.kinds.values()) == 1
    if mode == "resident":
        flags[flags.index("skip")] = "error"
        with pytest.raises(InputError, match=f"^{given[0]}:[0-9]+: not JSON"):
            set_up(parse_job(flags), "all_args.json")
