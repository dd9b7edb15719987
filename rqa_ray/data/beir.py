"""Reads BEIR's folders: `corpus.jsonl`, `queries.jsonl`, and judgments in `qrels/train.tsv`, `dev.tsv` and `test.tsv`.

A file of judgments is a file of questions: its queries and passages are looked up in the two files of the folder. A
passage with a grade above 0 is a gold of this grade; a passage with a grade of 0 or less is a hard
negative. (Thakur et al. 2021)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import fs

from rqa_ray.data.delimited import SURPLUS, columns_of, read_delimited
from rqa_ray.data.files import COMPRESSED, read_lines
from rqa_ray.data.values import RecordError, parse_json
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import exists, hub_errors, inside, open_location, shown

# Names of files in `qrels`, by input of a job.
JUDGMENTS = {"train": "train", "asked": "train", "eval": "dev", "weight": "dev", "test": "test"}
SUFFIXES = (".tsv", *(f".tsv{end}" for end in COMPRESSED))
# A line that begins with its `_id`, as usual; parsing lines that nobody wants would take most of the time.
ID_FIRST = re.compile(rb'\s*\{\s*"_id"\s*:\s*("[^"\\]*"|-?\d+)\s*,')
COLUMNS = ("query-id", "corpus-id", "score")


def in_beir_folder(name: str, flag: str, location: str) -> str:
    """Returns the file that an input (`corpus`, or one of `JUDGMENTS`) has in a BEIR folder; else the location.

    Raises:
        InputError: the folder is BEIR's, but has no such file.
    """
    if not _is_beir(location):
        return location
    if name == "corpus":
        return _lines_file(location, "corpus")
    paths = [inside(location, f"qrels/{JUDGMENTS[name]}{suffix}") for suffix in SUFFIXES]
    found = next(filter(exists, paths), None)
    if found is None:
        filesystem, root = open_location(inside(location, "qrels"))
        names = sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(root)))
        has = f"it has {', '.join(names)}, which --{flag} may name" if names else "its folder qrels is empty"
        if flag == "eval_file":
            has += "; training may hold out eval questions with --eval_share 0.1"
        raise InputError(f"--{flag} {shown(location)}: a BEIR folder without qrels/{JUDGMENTS[name]}.tsv; {has}")
    return found


def is_judgments(path: str) -> bool:
    """Returns whether a path or URI names BEIR's judgments, `qrels/NAME.tsv`."""
    parts = shown(path).replace("\\", "/").split("/")
    return len(parts) > 1 and parts[-2] == "qrels" and parts[-1].endswith(SUFFIXES)


def check_judgments(path: str) -> None:
    """Raises InputError if judgments cannot be read or have other columns, or if a file beside them is missing."""
    for name in ("corpus", "queries"):
        _lines_file(_above(path, 2), name)
    with _reading(path):
        names, first = columns_of(path), next(read_delimited(path), None)
    if missing := [name for name in COLUMNS if name not in names]:
        what = f"the first line has to name the columns {', '.join(COLUMNS)}"
        raise InputError(f"{shown(path)}:1: no column `{missing[0]}`; {what}")
    if first is None:
        raise InputError(f"{shown(path)}: no records in it")


def left_out(path: str) -> str:
    """Returns a line about the queries without a grade above 0, which `read_judgments` leaves out; empty without any.

    Raises:
        InputError: there are no other queries.
    """
    asked, kept = set(), set()
    with _reading(path):
        for _, row in read_delimited(path):
            query, _, score = (row.get(name, "") for name in COLUMNS)
            asked.add(query)
            if _is_kept(_grade(score)):
                kept.add(query)
    if not kept:
        raise InputError(f"{shown(path)}: no passage of its {len(asked):,} queries has a score above 0")
    number = len(asked) - len(kept)
    what = f"{number:,} of {len(asked):,} queries have no passage with a score above 0, and are left out"
    return f"note: {shown(path)}: {what}" if number else ""


def refuse_other_part(name: str, flag: str, path: str) -> None:
    """Raises InputError if a file is a part of a BEIR folder, but not the part that an input reads."""
    place = shown(path).replace("\\", "/").rsplit("/", 1)[-1]
    is_part = place.startswith(("corpus.jsonl", "queries.jsonl"))
    folder = _above(path, 2 if is_judgments(path) else 1)
    is_wanted = place.startswith("corpus.jsonl") if name == "corpus" else is_judgments(path)
    if not is_wanted and (is_part or is_judgments(path)) and _is_beir(folder):
        file = "corpus.jsonl" if name == "corpus" else f"qrels/{JUDGMENTS[name]}.tsv"
        raise InputError(
            f"--{flag} {shown(path)}: another part of a BEIR folder; give the folder, {shown(folder)}, or its {file}"
        )


def num_judgments(path: str) -> int:
    """Counts the judgments of a file."""
    with _reading(path):
        return sum(1 for _ in read_delimited(path))


def read_judgments(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (line of the first judgment, record) of each query; an error in place of a record says what is wrong.

    Leaves out the queries about which `left_out` returns a line. Holds the queries and passages that the judgments
    name in memory.
    """
    check_judgments(path)
    judged: dict[str, dict[str, float | RecordError]] = {}
    lines: dict[str, int] = {}
    for line, row in read_delimited(path):
        query, passage, score = (row.get(name, "") for name in COLUMNS)
        lines.setdefault(query, line)
        grades, grade = judged.setdefault(query, {}), _grade(score)
        if SURPLUS in row:
            grade = RecordError(f"line {line} has more cells than the header")
        if grades.setdefault(passage, grade) != grade and not isinstance(grade, RecordError):
            grade = RecordError(
                f"passage {passage!r} has two scores for query {query!r}; the second is in line {line}"
            )
        if isinstance(grade, RecordError):
            grades[passage] = grade
    judged = {query: grades for query, grades in judged.items() if any(map(_is_kept, grades.values()))}
    queries = _by_id(_lines_file(_above(path, 2), "queries"), judged)
    passages = _by_id(_lines_file(_above(path, 2), "corpus"), {one for of in judged.values() for one in of})
    for query, grades in judged.items():
        yield lines[query], _record(query, grades, queries, passages)


def _record(
    query: str, grades: dict[str, float | RecordError], queries: dict[Any, Any], passages: dict[Any, Any]
) -> dict[str, Any] | RecordError:
    wrong = next((grade for grade in grades.values() if isinstance(grade, RecordError)), None)
    if wrong:
        return wrong
    for name, what, found in ((query, "query", queries), *((name, "passage", passages) for name in grades)):
        if name not in found:
            file = "queries.jsonl" if what == "query" else "corpus.jsonl"
            return RecordError(f"no {what} with `_id` {name!r} in {file}{found[None]}")
        if isinstance(found[name], RecordError):
            return found[name]
        if not isinstance(found[name].get("text"), str):
            return RecordError(f"the {what} with `_id` {name!r} has no `text`")
    golds = {name: grade for name, grade in grades.items() if _is_kept(grade)}
    return {
        "question": queries[query]["text"],
        "gold_docs": [passages[name] for name in golds],
        "gold_grades": [*golds.values()],
        "hard_neg_docs": [passages[name] for name in grades if name not in golds],
    }


def _grade(score: str) -> float | RecordError:
    try:
        grade = float(score)
    except ValueError:
        grade = math.nan
    return grade if math.isfinite(grade) else RecordError(f"`score` has to be a number, found {score!r}")


def _is_kept(grade: float | RecordError) -> bool:
    """Returns whether a judgment makes its query a record: a gold, or an error that has to be said."""
    return isinstance(grade, RecordError) or grade > 0


def _by_id(path: str, wanted: Any) -> dict[Any, Any]:
    """Returns the objects of a file whose `_id` is wanted; an error in place of an object says what is wrong.

    Under None is a text about the first line that cannot be read, for messages about an id that is not found.
    """
    found: dict[Any, Any] = {None: ""}
    with _reading(path):
        for line, text in read_lines(path):
            first = ID_FIRST.match(text)
            if first and first[1].strip(b'"').decode(errors="replace") not in wanted:
                continue
            try:
                value = parse_json(text.decode("utf-8"))
            except (RecordError, UnicodeDecodeError) as error:
                found[None] = found[None] or f"; its line {line} cannot be read ({error})"
                continue
            name = str(value["_id"]) if isinstance(value, dict) and "_id" in value else None
            if name is not None and name in wanted and found.setdefault(name, value) != value:
                found[name] = RecordError(f"`_id` {name!r} stands for two objects in {shown(path)}")
    return found


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Raises InputError if a file cannot be read."""
    try:
        with hub_errors(path):
            yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{shown(path)}: cannot be read ({first_line(error)})") from None


def _is_beir(location: str) -> bool:
    try:
        with hub_errors(location):
            filesystem, path = open_location(location)
            found = filesystem.get_file_info([f"{path}/qrels"])[0]
    except (OSError, ValueError):  # a glob, a file, or an address that is wrong: whoever opens it will say so
        return False
    return found.type == fs.FileType.Directory and any(_find_lines(location, name) for name in ("corpus", "queries"))


def _lines_file(folder: str, name: str) -> str:
    found = _find_lines(folder, name)
    if found is None:
        raise InputError(f"{shown(folder)}: a BEIR folder without {name}.jsonl")
    return found


def _find_lines(folder: str, name: str) -> str | None:
    names = (f"{name}.jsonl", *(f"{name}.jsonl{end}" for end in COMPRESSED))
    return next(filter(exists, (inside(folder, file) for file in names)), None)


def _above(path: str, levels: int) -> str:
    """Returns the folder that is some levels above a path or URI."""
    base, question_mark, query = path.partition("?") if "://" in path else (path, "", "")
    return "/".join(base.split("/")[:-levels]) + question_mark + query
