"""How command lines, JSON configs and keyword arguments become settings; every mistake gives one line."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Literal

import pytest

from rqa_ray.command_line import parse
from rqa_ray.corpus_settings import EmbedSettings, EvaluateSettings, MineSettings, PrepareSettings, SearchSettings
from rqa_ray.errors import InputError, need_extra
from rqa_ray.fields import DATA, OUTPUT, REQUIRED, at_least

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.stem for path in ROOT.glob("jobs/*.py"))


@dataclasses.dataclass(kw_only=True)
class Example:
    """Settings of each kind."""

    count: int = DATA.setting(2, "How many.", at_least(1))
    sizes: list[int] | None = DATA.setting(None, "Of each.", at_least(1), may_be_empty=True)
    folder: str = OUTPUT.path(REQUIRED, "Where.", more_names=("folder", "output_folder"))
    files: list[str] | None = DATA.path(None, "Which.", unset="all")
    fast: bool = DATA.setting(False, "In a hurry.")
    slow: bool = DATA.setting(True, "Patient.")
    prefix: str | None = DATA.setting(None, "Said first.")
    weight: float = DATA.setting(1.0, "In kg.")
    color: Literal["red", "green"] = OUTPUT.setting("red", "Painted so.")


def example(*words: str) -> Example:
    return parse(Example, words)


def error_of(*words: str) -> str:
    with pytest.raises(InputError) as error:
        example(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


def asked(*words: str) -> SearchSettings:
    return parse(SearchSettings, words, free_word="question")


@pytest.fixture
def home(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_a_setting_goes_by_all_of_its_names_with_dashes_and_underscores():
    for name in ("folder", "output_folder", "output-folder"):
        assert example(f"--{name}", "a").folder == example(f"--{name}=a").folder == "a"


@pytest.mark.parametrize(
    ("words", "fast"),
    [
        ([], False),
        (["--fast"], True),
        (["--fast", "true"], True),
        (["--fast=false"], False),
        (["--fast", "no"], False),
    ],
)
def test_a_switch_needs_no_value_and_may_have_one(words, fast):
    assert example("--folder", "a", *words).fast is fast


def test_a_wrong_value_is_named_with_what_it_has_to_be():
    assert error_of("--folder", "a", "--count", "0") == "--count 0: has to be at least 1"
    assert error_of("--folder", "a", "--sizes", "3", "0") == "--sizes 0: has to be at least 1"
    for number in ("nan", "inf", "-inf"):
        assert error_of("--folder", "a", f"--weight={number}") == f"--weight {number}: has to be a finite number"
    assert error_of("--folder", "a", "--count", "few") == "--count: 'few' is no whole number"


def test_an_unknown_name_is_met_with_the_nearest_as_it_was_written(tmp_path):
    assert error_of("--cuont", "1") == "--cuont: unknown argument; did you mean --count?"
    assert error_of("--output-foldr=1") == "--output-foldr: unknown argument; did you mean --output-folder?"
    assert error_of("--xyzzy") == "--xyzzy: unknown argument (-h lists all arguments)"
    with pytest.raises(InputError, match=r"^cuont: unknown argument; did you mean count\?$"):
        parse(Example, {"cuont": 1})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"folder": "a", "cuont": None}))
    assert error_of(str(path)) == f"{path}: cuont: unknown argument; did you mean count?"


def test_a_value_that_is_no_choice_is_met_with_the_nearest_and_all():
    assert error_of("--color", "gren") == "--color gren: did you mean green? choose one of red, green"
    assert error_of("--color", "42") == "--color 42: choose one of red, green"


def test_what_is_missing_is_named_once():
    assert error_of() == error_of("--folder=") == "--folder is missing (-h lists all arguments)"


def test_a_list_may_be_empty_where_that_means_something():
    assert example("--folder", "a", "--sizes").sizes == []
    assert error_of("--folder", "a", "--files") == "--files: a value is missing"


def test_a_config_and_keyword_arguments_are_the_flags_of_those_names(tmp_path):
    values = {"output_folder": "a", "sizes": [3, 4], "fast": True, "prefix": "--fast", "count": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    expected = Example(folder="a", sizes=[3, 4], fast=True, prefix="--fast")
    assert example(str(tmp_path / "config.json")) == parse(Example, values) == expected
    assert example(str(tmp_path / "config.json"), "--folder", "b").folder == "b"
    assert parse(Example, {"folder": Path("a"), "files": (Path("b"), "c")}).files == ["b", "c"]


def test_the_home_folder_is_meant_in_flags_configs_and_keyword_arguments(home, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"folder": "~/run", "files": ["~/a", "b~"], "prefix": "~/"}))
    expected = Example(folder=f"{home}/run", files=[f"{home}/a", "b~"], prefix="~/")
    assert example("--folder=~/run", "--files", "~/a", "b~", "--prefix=~/") == expected
    assert example("~/config.json") == parse(Example, {"folder": "~/run", "files": ["~/a", "b~"]} | {
        "prefix": "~/"
    }) == expected  # fmt: skip


def test_paths_of_every_job_know_the_home_folder(home):
    from rqa_ray.training.job import parse_job

    words = "--model_name_or_path m --demo_size 9 --output_dir=~/run --storage_path=~/s --resume_from_checkpoint=~/c"
    job = parse_job(words.split())
    assert (job.output_dir, job.settings.storage_path, job.resume) == (f"{home}/run", f"{home}/s", f"{home}/c")
    for kind in (EmbedSettings, EvaluateSettings, MineSettings, PrepareSettings, SearchSettings):
        for item in dataclasses.fields(kind):
            named = (
                item.name.endswith(("_path", "_file", "_labels", "compare", "teacher")) or item.name == "output_dir"
            )
            assert item.metadata["is_path"] == named, item.name


def test_a_path_that_no_file_can_have_is_refused(home):
    assert example("--folder", "ü" * 127).folder == "ü" * 127
    assert error_of("--folder", "a/" + "ü" * 128).startswith("--folder a/üü")
    assert error_of("--folder", "a", "--files", "b", "c" * 300).endswith("...: has a name of more than 255 bytes")
    assert example("--folder", "s3://bucket/" + "k" * 300).folder.endswith("kk")


MODEL = ("--model", "m")


@pytest.mark.parametrize(
    "words",
    [
        ("how?", *MODEL, "--document_path", "a.jsonl"),
        (*MODEL, "how?", "--document_path", "a.jsonl"),
        (*MODEL, "--document_path", "a.jsonl", "how?"),
        (*MODEL, "--document_path", "a.jsonl", "--json", "how?"),
        (*MODEL, "--document_path", "a.jsonl", "--top_k", "5", "how?"),
        (*MODEL, "--document_path", "a.jsonl", "--question", "how?"),
        ("--question=how?", *MODEL, "--document_path", "a.jsonl"),
        (*MODEL, "--document_path", "a.jsonl", "--", "how?"),
    ],
)
def test_the_question_is_the_word_without_a_flag_wherever_it_stands(words):
    settings = asked(*words)
    assert (settings.question, settings.document_path) == ("how?", ["a.jsonl"])


def test_the_last_word_of_a_list_of_files_is_the_question_if_it_names_no_file(tmp_path, capsys):
    (tmp_path / "known").touch()
    files = ("s3://b/c", str(tmp_path / "k*"))
    assert asked(*MODEL, "--document_path", *files).document_path == [*files]
    assert asked(*MODEL, "--document_path", "a.jsonl", "wrong/name.jsonl").document_path == [
        "a.jsonl",
        "wrong/name.jsonl",
    ]
    assert capsys.readouterr().err == ""
    assert asked(*MODEL, "--document_path", "a.jsonl", "what is a/b.c?").question == "what is a/b.c?"
    assert capsys.readouterr().err == "note: 'what is a/b.c?' names no file, so it is the question\n"
    assert asked(*MODEL, "--document_path", "a.jsonl", "node.js").question == "node.js"
    assert asked(*MODEL, "--document_path", "refunds").question is None
    assert asked(*MODEL, "--document_path", "a.jsonl", "b.csv.gz").question is None


def test_a_question_may_end_like_a_config_or_begin_like_a_flag(tmp_path):
    assert asked("what is package.json", *MODEL).question == "what is package.json"
    config = tmp_path / "my search.json"
    config.write_text('{"model": "m", "question": "how?"}')
    assert asked(str(config)).question == "how?"
    assert asked(*MODEL, "--", "--bf16 or --fp16?").question == "--bf16 or --fp16?"
    with pytest.raises(InputError, match="^package.json: cannot be read"):
        asked("package.json", *MODEL)


def test_a_question_without_quotes_is_not_cut_to_its_last_word():
    with pytest.raises(InputError, match="^'how' and 'much': two words without a flag; put the question in quotes$"):
        asked("how", "much", *MODEL)


def test_a_word_without_a_flag_is_wrong_where_no_question_is_asked():
    assert error_of("--folder", "a", "--count", "1", "stray").startswith("stray: unknown argument")


def said_by(job: str, *words: str) -> int:
    """What a job's process would exit with."""
    name, *first = job.split()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [f"jobs/{name}.py", *first, *words])
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    return end.value.code


@pytest.mark.parametrize("job", [*JOBS, "benchmark train", "benchmark data", "benchmark eval", "benchmark mine"])
def test_the_help_of_every_job_is_short_and_begins_with_what_it_does_its_usage_an_example(job, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "")
    assert said_by(job, "-h") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    assert lines[0].endswith(".") and lines[1] == ""
    name, *first = job.split()
    assert lines[2].startswith(f"usage:   python {' '.join([f'jobs/{name}.py', *first])} ")
    assert lines[3].startswith(f"example: python {' '.join([f'jobs/{name}.py', *first])} ")


@pytest.mark.parametrize("job", [*JOBS, "benchmark eval"])
def test_every_job_is_short_knows_json_and_says_a_mistake_in_one_line(job, capsys):
    assert len((ROOT / "jobs" / f"{job.split()[0]}.py").read_text().splitlines()) < 60
    known = [] if job == "benchmark" else ["--json"]  # which needs a word that names a benchmark
    assert said_by(job, *known, "--no_such_flag=1") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: --no_such_flag")


def test_a_benchmark_that_there_is_not_is_met_with_the_nearest(capsys):
    assert said_by("benchmark", "trian") == 2
    assert capsys.readouterr().err == (
        "error: trian: no benchmark; did you mean train? choose one of train, gpu, data, eval, mine, quality "
        "(-h lists them)\n"
    )


def test_a_missing_package_is_installed_from_this_folder_not_from_an_index():
    with pytest.raises(InputError, match=r'^--index: needs no_such: pip install -e "\.\[index\]"$'):
        need_extra("--index", "index", "no_such")
    code = "".join(path.read_text() for path in [*ROOT.rglob("rqa_ray/**/*.py"), *ROOT.glob("jobs/*.py")])
    assert 'pip install "rqa_ray' not in code and "pip install rqa_ray" not in code
