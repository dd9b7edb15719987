"""Reads BEIR's folders: `corpus.jsonl`, `queries.jsonl`, and judgments in `qrels/train.tsv`, `dev.tsv` and `test.tsv`.

A file of judgments is a file of questions: its queries and passages are looked up in the two files of the folder. A
passage with a grade above 0 is a gold; a passage with grade 0 is a hard negative. Grades above 0 are not told apart.
(Thakur et al. 2021)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from rqa_ray.data.delimited import read_delimited
from rqa_ray.data.files import COMPRESSED, read_lines
from rqa_ray.data.formats import RecordError, parse_json
from rqa_ray.errors import InputError
from rqa_ray.places import exists, hub_errors, inside, open_location, shown

# Names of files in `qrels`, by input of a job.
JUDGMENTS = {"train": "train", "asked": "train", "eval": "dev", "weight": "dev", "test": "test"}
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
    path = inside(location, f"qrels/{JUDGMENTS[name]}.tsv")
    if not exists(path):
        filesystem, root = open_location(inside(location, "qrels"))
        found = sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(root)))
        raise InputError(
            f"--{flag} {shown(location)}: a BEIR folder without qrels/{JUDGMENTS[name]}.tsv; it has "
            f"{', '.join(found) or 'no judgments'}, which --{flag} may name"
        )
    return path


def is_judgments(path: str) -> bool:
    """Returns whether a path or URI names BEIR's judgments, `qrels/NAME.tsv`."""
    parts = shown(path).replace("\\", "/").split("/")
    return len(parts) > 1 and parts[-2] == "qrels" and parts[-1].endswith(".tsv")


def check_judgments(path: str) -> None:
    """Raises InputError if the columns of judgments are wrong, or if a file beside them is missing."""
    for name in ("corpus", "queries"):
        _lines_file(_folder(path), name)
    _, row = next(read_delimited(path), (0, None))
    if row is None:
        raise InputError(f"{path}: no records in it")
    if missing := [name for name in COLUMNS if name not in row]:
        raise InputError(f"{path}:1: no column `{missing[0]}`; judgments have the columns {', '.join(COLUMNS)}")


def read_judgments(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (line of the first judgment, record) of each query; an error in place of a record says what is wrong.

    Holds the queries and passages that the judgments name in memory.
    """
    check_judgments(path)
    judged: dict[str, dict[str, float | RecordError]] = {}
    lines: dict[str, int] = {}
    for line, row in read_delimited(path):
        query = row["query-id"]
        lines.setdefault(query, line)
        judged.setdefault(query, {})[row["corpus-id"]] = _grade(row["score"])
    queries = _by_id(_lines_file(_folder(path), "queries"), judged)
    passages = _by_id(_lines_file(_folder(path), "corpus"), {one for of in judged.values() for one in of})
    for query, grades in judged.items():
        yield lines[query], _record(query, grades, queries, passages)


def _record(
    query: str, grades: dict[str, float | RecordError], queries: dict[str, Any], passages: dict[str, Any]
) -> dict[str, Any] | RecordError:
    wrong = next((grade for grade in grades.values() if isinstance(grade, RecordError)), None)
    if wrong:
        return wrong
    if query not in queries:
        return RecordError(f"no query with `_id` {query!r} in queries.jsonl")
    lost = next((name for name in grades if name not in passages), None)
    if lost is not None:
        return RecordError(f"no passage with `_id` {lost!r} in corpus.jsonl")
    golds = [passages[name] for name, grade in grades.items() if grade > 0]  # type: ignore[operator]
    if not golds:
        return RecordError(f"no passage of query {query!r} has a score above 0")
    others = [passages[name] for name, grade in grades.items() if grade <= 0]  # type: ignore[operator]
    return {"question": queries[query].get("text"), "gold_docs": golds, "hard_neg_docs": others}


def _grade(score: str | None) -> float | RecordError:
    try:
        return float(score or "")
    except ValueError:
        return RecordError(f"`score` has to be a number, found {score!r}")


def _by_id(path: str, wanted: Any) -> dict[str, Any]:
    """Returns the objects of a file whose `_id` is wanted."""
    found: dict[str, Any] = {}
    for line, text in read_lines(path):
        try:
            value = parse_json(text.decode("utf-8"))
        except (RecordError, UnicodeDecodeError) as error:
            raise InputError(f"{path}:{line}: {error}") from None
        name = str(value.get("_id")) if isinstance(value, dict) else ""
        if name in wanted:
            found[name] = value
    return found


def _is_beir(location: str) -> bool:
    try:
        with hub_errors(location):
            filesystem, path = open_location(location)
            found = filesystem.get_file_info([f"{path}/qrels"])[0]
    except (OSError, ValueError):  # a glob, a file, or an address that is wrong: whoever opens it will say so
        return False
    return found.type == fs.FileType.Directory


def _lines_file(folder: str, name: str) -> str:
    for suffix in (".jsonl", *(f".jsonl{end}" for end in COMPRESSED)):
        path = inside(folder, name + suffix)
        if exists(path):
            return path
    raise InputError(f"{shown(folder)}: a BEIR folder without {name}.jsonl")


def _folder(judgments: str) -> str:
    """Returns the folder that has judgments in its folder `qrels`."""
    base, question_mark, query = judgments.partition("?") if "://" in judgments else (judgments, "", "")
    return "/".join(base.split("/")[:-2]) + question_mark + query
