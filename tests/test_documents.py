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

from rqa_ray import corpus_settings, settings
from rqa_ray.benchmarks.benchmark import BENCHMARKS
from rqa_ray.help_text import shown_default
from rqa_ray.training.arguments import ALIASES, RetrieverTrainingArguments
from rqa_ray.tuning.options import TuneSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("jobs/*.md")), *sorted(ROOT.glob("rqa_ray/**/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)

for_each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def settings_by_job() -> dict[str, list[dataclasses.Field]]:
    """The settings of each job but benchmark.py, and preflight.py, which takes those of train.py."""
    named = (vars(settings) | vars(corpus_settings)).values()
    kinds = [kind for kind in named if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    by_job = {f"jobs/{kind.__name__.removesuffix('Settings').lower()}.py": [kind] for kind in kinds}
    jobs = {job: kinds for job, kinds in by_job.items() if (ROOT / job).exists()} | {"jobs/tune.py": [TuneSettings]}
    jobs["jobs/train.py"].append(RetrieverTrainingArguments)
    return {
        job: [item for kind in kinds for item in dataclasses.fields(kind) if "group" in item.metadata]
        for job, kinds in jobs.items()
    }


def names_of(item: dataclasses.Field) -> set[str]:
    return {item.name, *item.metadata["more_names"]}


def known_flags() -> set[str]:
    benchmarks = [item for kind, _ in BENCHMARKS.values() for item in dataclasses.fields(kind)]
    names = {name for items in [*settings_by_job().values(), benchmarks] for item in items for name in names_of(item)}
    alone = {item.name for item in dataclasses.fields(corpus_settings.AuditSettings)}
    return names | alone | {item.name for item in dataclasses.fields(TrainingArguments)} | ALIASES.keys() | {"help"}


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


def tables_by_job() -> dict[str, dict[str, str]]:
    """The defaults by flag in the tables of jobs/README.md, by the job in the heading, else of train.py."""
    tables: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", (ROOT / "jobs" / "README.md").read_text(), flags=re.MULTILINE):
        job = next(iter(re.findall(r"jobs/\w+\.py", section.splitlines()[0])), "jobs/train.py") if section else ""
        for table in section.split("| flag | default | what |\n|---|---|---|\n")[1:]:
            for row in table.split("\n\n")[0].splitlines():
                flags, default, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
                tables.setdefault(job, {}).update(dict.fromkeys(re.findall(r"--(\w+)", flags), default))
    return tables


@pytest.mark.parametrize("job", settings_by_job())
def test_the_tables_of_settings_have_the_names_and_defaults_of_the_job(job):
    tables, items = tables_by_job(), settings_by_job()[job]
    own = tables.get(job, {})
    known = {name: shown_default(item) for item in items for name in names_of(item)}
    assert {name: default for name, default in own.items() if known.get(name) != default} == {}
    shared = tables["jobs/train.py"] | own  # what is as in train.py need not be said again
    missing = [item for item in items if shown_default(item) not in {shared.get(name) for name in names_of(item)}]
    assert [item.name for item in missing] == []


def test_the_first_document_is_short_and_has_short_lines():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 100] == []
