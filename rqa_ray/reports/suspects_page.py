"""The page on which a person accepts or refuses suspects: passages that mining found and that look like answers.

`suspects.html` beside this file is the template. The page holds the lines of suspects.jsonl, needs no network, and
shows data as text, never as markup. The file that the page saves is what `--accepted_labels` takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rqa_ray.data.files import read_lines
from rqa_ray.data.formats import parse_document, parse_label
from rqa_ray.data.values import RecordError, parse_json
from rqa_ray.errors import InputError
from rqa_ray.job_output import JobResult
from rqa_ray.places import write_whole
from rqa_ray.reports.pages import cut, render
from rqa_ray.texts import INVISIBLE

SUSPECTS_FILE, PAGE_FILE = "suspects.jsonl", "suspects.html"
MOST_SUSPECTS, MOST_BYTES = 2_000, 30_000_000  # on a page: more than a person reads, and as much as a browser reads
MOST_OF_REPORT, MOST_CHARACTERS = 3, 600  # suspects of a run's report, and characters of their texts


@dataclass(frozen=True)
class ShownSuspect:
    """A suspect in a run's report; texts may be cut."""

    question: str
    gold: str  # the first
    rival: str
    scores: str


@dataclass(frozen=True)
class SuspectsPart:
    """The part of a run's report about suspects."""

    number: int
    first: list[ShownSuspect]  # the closest to their golds
    link: str = ""  # place of suspects.html, relative to the report

    @classmethod
    def of(cls, folder: Path, link: str) -> SuspectsPart | None:
        """Reads the suspects.jsonl of a folder; returns None if there is no such file.

        Raises:
            InputError: one of the lines that the report shows is wrong.
        """
        path = folder / SUSPECTS_FILE
        if not path.is_file():
            return None
        lines = read_lines(str(path))
        first = [_shown(_suspect(path, number, line)) for number, line in islice(lines, MOST_OF_REPORT)]
        number = len(first) + sum(1 for _ in lines)
        return cls(number, first, link if (folder / PAGE_FILE).is_file() else "")


@dataclass
class SuspectsPage(JobResult):
    """The page of suspects that was written."""

    suspects: int
    shown: int

    def describe(self) -> str:
        """Returns a line for a person."""
        of_all = f" of {self.suspects:,}" if self.shown < self.suspects else ""
        return f"audit: {self.shown:,}{of_all} suspects in {self.report}; open it in a browser"


def write_suspects_page(folder: Path, name: str = "") -> SuspectsPage:
    """Writes suspects.html from the suspects.jsonl of a folder; returns a line for the user.

    The page has the name of the folder if it gets no name.

    Raises:
        InputError: there is no suspects.jsonl, or one of its lines is wrong.
    """
    path = folder / SUSPECTS_FILE
    if not path.is_file():
        raise InputError(f"--audit {folder}: there is no {SUSPECTS_FILE} in it; jobs/mine.py writes one")
    lines = read_lines(str(path))
    suspects = [_suspect(path, number, line) for number, line in _first(lines)]
    more = sum(1 for _ in read_lines(str(path))) - len(suspects)
    note = f"The first {MOST_SUSPECTS:,} of {MOST_SUSPECTS + more:,} suspects." if more else ""
    write_whole(folder / PAGE_FILE, page(name or folder.absolute().name, suspects, note).encode())
    written = str(folder / PAGE_FILE)
    return SuspectsPage(len(suspects) + more, len(suspects), files=[written], report=written)


def page(name: str, suspects: list[dict[str, Any]], note: str = "") -> str:
    """Returns the page as one HTML file. `suspects` are the objects of suspects.jsonl."""
    lines = []  # as text: JavaScript would round large numbers, and the page saves these lines
    for suspect in suspects:
        rest = {key: value for key, value in suspect.items() if key != "accept"}
        lines.append([f'{json.dumps(rest)[:-1]}, "accept": ', suspect.get("accept")])
    return render("suspects.html", name=name, suspects=lines, note=note, invisible=Markup(json.dumps(INVISIBLE)))


def _first(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yields the first lines, as many as a page may have; the first line whatever its size."""
    size = 0
    for number, line in islice(lines, MOST_SUSPECTS):
        size += len(line)
        if number > 1 and size > MOST_BYTES:
            return
        yield number, line


def _shown(suspect: dict[str, Any]) -> ShownSuspect:
    golds = [parse_document(gold) for gold in suspect["gold_docs"]]
    gold, rival = golds[0].fmt_content if golds else "", parse_document(suspect["rival"]).fmt_content
    question, gold, rival = (cut(text, MOST_CHARACTERS) for text in (suspect["question"], gold, rival))
    named = {"gold": suspect.get("gold_score"), "suspect": suspect.get("score")}
    scores = [f"{name} {value:.3f}" for name, value in named.items() if isinstance(value, (int, float))]
    return ShownSuspect(question, gold, rival, ", ".join(scores))


def _suspect(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Returns the object of a line; raises InputError if the page cannot show it."""
    try:
        suspect = parse_json(line.decode())
        parse_label(suspect)
        if not isinstance(suspect.get("id"), str):
            raise RecordError("no `id`, which has to be a string")
        if not isinstance(suspect.get("gold_docs"), list):
            raise RecordError("no list of `gold_docs`")
        for gold in suspect["gold_docs"]:
            parse_document(gold)
    except (RecordError, UnicodeDecodeError) as error:
        raise InputError(f"{path}:{number}: {error}") from None
    return suspect
