"""Documents and code agree: flags, defaults, commands, files and headings that documents name exist as they say."""

import ast
import dataclasses
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from rqa_ray import settings
from rqa_ray.benchmarks.benchmark import BENCHMARKS
from rqa_ray.training.arguments import ALIASES, RetrieverTrainingArguments
from rqa_ray.tuning.options import TuneSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("jobs/*.md")), *sorted(ROOT.glob("rqa_ray/**/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)

for_each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def of_jobs() -> list[dataclasses.Field]:
    """The settings of all jobs but benchmark.py, as often as jobs take them."""
    kinds = [kind for kind in vars(settings).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    jobs = [kind for kind in kinds if not any(other is not kind and issubclass(other, kind) for other in kinds)]
    jobs.remove(settings.BenchmarkSettings)
    items = [item for kind in [*jobs, RetrieverTrainingArguments, TuneSettings] for item in dataclasses.fields(kind)]
    return [item for item in items if "group" in item.metadata]


def names_of(item: dataclasses.Field) -> set[str]:
    return {item.name, *item.metadata["more_names"]}


def known_flags() -> set[str]:
    benchmarks = [item for kind, _ in BENCHMARKS.values() for item in dataclasses.fields(kind)]
    names = {name for item in [*of_jobs(), *benchmarks] for name in names_of(item)}
    return names | {item.name for item in dataclasses.fields(TrainingArguments)} | ALIASES.keys() | {"help"}


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def commands(lines: list[str]) -> list[list[str]]:
    """The words after `python`, of all commands in lines that run a job."""
    found = [part for line in lines for part in re.split(r"\bpython (?=jobs/)", line.strip())[1:]]
    return [shlex.split(re.split(r" (?:&&|\||>|;) ", part)[0], comments=True) for part in found]


def documented_commands() -> list[list[str]]:
    """The commands in code blocks and running text of documents, and the examples of `-h`."""
    lines = []
    for document in DOCUMENTS:
        blocks = [text for language, text in FENCE.findall(document.read_text()) if language != "python"]
        lines += [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += CODE.findall(prose(document))
    abouts = [ast.get_docstring(ast.parse(path.read_text())) for path in ROOT.glob("jobs/*.py")]
    abouts += [kind.__doc__ for kind, _ in BENCHMARKS.values()]
    return commands(lines + [about.split("example:")[1].replace("\\\n", " ") for about in abouts])


@for_each_document
def test_every_flag_that_a_document_names_is_one(document):
    spans = [span for span in CODE.findall(prose(document)) if span.startswith("-")]
    flags = {flag.replace("-", "_") for span in spans for flag in re.findall(r"(?<!\S)--(\w[\w-]*)", span)}
    assert flags - known_flags() == set()


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_every_command_of_a_document_is_understood(words, capsys, monkeypatch):
    job, *given = words
    given = ["1" if re.fullmatch(r"\$\w+", word) else word for word in given if word != "..."]
    if "-h" in given:
        given = given[: given.index("-h")]
    if given and given[0].endswith(".json") and not (ROOT / given[0]).exists():  # a run has to write it first
        del given[0]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [job, *(given or ["train"] * (job == "jobs/benchmark.py")), "--no_such_flag"])
    with pytest.raises(SystemExit):
        runpy.run_path(job, run_name="__main__")
    assert "--no_such_flag" in capsys.readouterr().err  # the first flag that is wrong


@for_each_document
def test_every_file_that_a_document_names_exists(document):
    text = document.read_text()
    rooms = {path.name for path in (ROOT / "rqa_ray").iterdir() if path.is_dir()}
    for span in CODE.findall(prose(document)):
        top, slash, _ = span.partition("/")
        if slash and re.fullmatch(r"[\w./-]+", span) and (top in rooms or (ROOT / top).is_dir() and top != "output"):
            places = [ROOT / span, ROOT / "rqa_ray" / span, document.parent / span]
            assert any(place.exists() for place in places), span
    for found in re.findall(r"(?<!\w)(?:\.\./)+[\w./-]*", text):
        place = (document.parent / found).resolve()
        assert place.is_relative_to(ROOT) and place.exists(), found
    assert not re.findall(r"(?<![\w.:/$~-])/(?:work|home|root|tmp|Users|mnt)/\S*", text)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@for_each_document
def test_every_link_leads_somewhere(document):
    for found in LINK.findall(prose(document)):
        target = next(filter(None, found))
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = (document.parent / name).resolve() if name else document
        assert place.exists() and place.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), target
