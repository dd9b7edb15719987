"""The page on which a person accepts or refuses suspects: passages that mining found and that look like answers.

`suspects.html` beside this file is the template. The page holds the lines of suspects.jsonl, needs no network, and
shows data as text, never as markup. The file that the page saves is what `--accepted_labels` takes.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from rqa_ray.data.files import read_lines
from rqa_ray.data.formats import parse_document, parse_label
from rqa_ray.data.values import RecordError, parse_json
from rqa_ray.errors import InputError
from rqa_ray.places import write_whole
from rqa_ray.texts import as_utf8

SUSPECTS_FILE, PAGE_FILE = "suspects.jsonl", "suspects.html"
MOST_SUSPECTS = 2_000  # on a page: some 10 MB, and more than a person reads


def write_suspects_page(folder: Path) -> str:
    """Writes suspects.html from the suspects.jsonl of a folder; returns a line for the user.

    Raises:
        InputError: there is no suspects.jsonl, or one of its lines is wrong.
    """
    path = folder / SUSPECTS_FILE
    if not path.is_file():
        raise InputError(f"--audit {folder}: there is no {SUSPECTS_FILE} in it; jobs/mine.py writes one")
    lines = read_lines(str(path))
    suspects = [_suspect(path, number, line) for number, line in islice(lines, MOST_SUSPECTS)]
    more = sum(1 for _ in lines)
    note = f"The first {MOST_SUSPECTS:,} of {MOST_SUSPECTS + more:,} suspects." if more else ""
    write_whole(folder / PAGE_FILE, page(folder.absolute().name, suspects, note).encode())
    shown = f"{len(suspects):,}{f' of {len(suspects) + more:,}' * bool(more)}"
    return f"audit: {shown} suspects in {folder / PAGE_FILE}; open it in a browser"


def page(name: str, suspects: list[dict[str, Any]], note: str = "") -> str:
    """Returns the page as one HTML file. `suspects` are the objects of suspects.jsonl."""
    lines = []  # as text: JavaScript would round large numbers, and the page saves these lines
    for suspect in suspects:
        rest = {key: value for key, value in suspect.items() if key != "accept"}
        lines.append([f'{json.dumps(rest)[:-1]}, "accept": ', suspect.get("accept")])
    template = jinja2.Template(Path(__file__).with_name("suspects.html").read_text("utf-8"), autoescape=True)
    return template.render(name=as_utf8(name), suspects=lines, note=note)


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
