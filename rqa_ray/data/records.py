"""Reads the records of files, one after the other; returns a bad record as data."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rqa_ray.data.beir import (
    check_judgments,
    in_beir_folder,
    is_judgments,
    left_out,
    read_judgments,
    refuse_other_part,
)
from rqa_ray.data.delimited import filled_cells, is_plain, read_delimited
from rqa_ray.data.files import (
    DELIMITED,
    MAX_LINE_BYTES,
    byte_ranges,
    find_files,
    has_suffix,
    lines_before,
    read_lines,
)
from rqa_ray.data.formats import ID_KEYS, parse_document, parse_label, parse_named_document, parse_qa_record
from rqa_ray.data.gold_ids import NamedPassage, PassagesById
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.parquet import read_rows, row_ranges
from rqa_ray.data.pickles import load_documents
from rqa_ray.data.schema import Document, Label, QARecord
from rqa_ray.data.values import RecordError, parse_json
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import hub_errors, open_file, refuse_among_inputs, shown, shown_files
from rqa_ray.texts import printable

PARSERS: dict[str, Callable[[Any], Any]] = {
    "documents": parse_document,
    "questions": parse_qa_record,
    "labels": parse_label,
    "named documents": parse_named_document,
}

Record = Document | QARecord | Label | tuple[str | None, Document]


def record_ranges(path: str, range_bytes: int) -> list[tuple[int, int | None]]:
    """Returns (start, end) of the parts of a file that are read in parallel, each of `range_bytes` or a little more.

    The unit is bytes for JSONL and row numbers for Parquet (whole row groups). A file with only one part has (0,
    None).
    """
    return (row_ranges if has_suffix(path, ".parquet") else byte_ranges)(path, range_bytes)


def read_records(
    path: str, kind: str, start: int = 0, end: int | None = None, labels: Labels | None = NO_LABELS
) -> Iterator[tuple[int, Record | str]]:
    """Yields (line, record) of a file of a kind in `PARSERS`; a string in place of a record says what is wrong.

    `labels` add golds to the questions here, so every reader of questions agrees about them. None leaves the questions
    as they are in the file; golds that are named by ids are then missing.

    Blank lines are skipped. The line is the number of the document in a pickle, of the row in Parquet, of the line
    where the row ends in CSV, and of the first judgment of a query in BEIR's judgments. In a range (`record_ranges`),
    lines are numbered as in `files.read_lines`, but messages count from the beginning of the file.
    """
    parse = PARSERS[kind]
    if has_suffix(path, ".pkl") and kind in ("questions", "labels"):
        yield 0, f"{shown(path)}: {kind} have to be JSONL; a pickle can only hold documents"
        return
    read, to_value = _reader(path, kind)
    try:
        with hub_errors(path):
            before = None  # only counted if something is wrong
            for number, value in read(path, start, end):
                record: Record | str
                try:
                    record = parse(to_value(value))
                    if labels is not None and isinstance(record, QARecord):
                        record = labels.passages.resolve(record)
                except UnicodeDecodeError as error:
                    record = f"not UTF-8 ({error.reason} at byte {error.start})"
                except RecordError as error:
                    record = str(error)
                except RecursionError:
                    record = "lists or objects in each other, too deep to read"
                if isinstance(record, str):
                    if before is None:
                        before = lines_before(path, start) if read is read_lines else start
                    record = printable(f"{shown(path)}:{before + number - start}: {record}")
                if labels is not None and isinstance(record, QARecord):
                    yield from ((number, part) for part in labels.apply(record))
                else:
                    yield number, record
    except InputError as error:  # a pickle raises for the whole file
        yield 0, str(error)
    except (OSError, EOFError, pa.ArrowException) as error:
        yield 0, f"{shown(path)}: cannot be read ({first_line(error)})"


def _reader(path: str, kind: str) -> tuple[Callable[..., Iterator[tuple[int, Any]]], Callable[[Any], Any]]:
    """Returns what reads the values of a file with their numbers, and what makes a value of JSON from each."""
    if has_suffix(path, ".pkl"):
        return _pickled_documents, _plain
    if has_suffix(path, ".parquet"):
        return read_rows, _plain
    if is_judgments(path) and kind == "questions":
        return read_judgments, _judged
    return (read_delimited, filled_cells) if has_suffix(path, *DELIMITED) else (read_lines, _parse_line)


def good_records(files: list[str], kind: str, skip_bad: bool = False, labels: Labels = NO_LABELS) -> Iterator[Any]:
    """Yields the records of files of a kind in `PARSERS`, one after the other.

    Raises:
        InputError: a bad record. With `skip_bad`, bad records are left out, because the caller has reported them.
    """
    for path in files:
        for _, record in read_records(path, kind, labels=labels):
            if not isinstance(record, str):
                yield record
            elif not skip_bad:
                raise InputError(record)


def _parse_line(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise RecordError(f"a line of more than {MAX_LINE_BYTES:,} bytes, which is no record")
    return parse_json(line.decode("utf-8"))


def _judged(record: Any) -> Any:
    if isinstance(record, RecordError):
        raise record
    return record


def _pickled_documents(path: str, start: int, end: int | None) -> Iterator[tuple[int, Any]]:
    with open_file(path) as file:
        yield from enumerate(load_documents(file, path), start=1)


def _plain(value: Any) -> Any:
    """Returns a value of Parquet as JSON would have it; values that JSON does not have stay.

    Missing fields are left out of objects: Parquet, which has one schema for all rows, fills them with nulls; pandas
    fills them with NaN. Bytes, also those of keys, are decoded to text.
    """
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items() if item is not None and item == item}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value if value == value else None


def check_beginnings(files: list[str], kind: str, skip_bad: bool = False) -> None:
    """Reads the first record of each file, to find a file of another kind or an empty file before Ray starts.

    Raises:
        InputError: the first record is wrong; with `skip_bad`, only if no record of a file is good.
    """
    for path in files:
        if has_suffix(path, ".pkl"):  # a pickle can only be read whole
            continue
        if is_judgments(path) and kind == "questions":  # their first record needs a pass over the corpus
            check_judgments(path)
            continue
        first, problem = None, f"{shown(path)}: no records in it"
        for _, first in read_records(path, kind, labels=None):
            if not isinstance(first, str) or not skip_bad:
                break
        if first is None or isinstance(first, str):
            raise InputError(first or problem)


Given = Mapping[str, tuple[str, list[str] | None]]  # by input, such as train: the flag and its value
ByLocation = dict[str, dict[str, list[str]]]  # by input, and by each location of its value: the files found there


def find_inputs(given: Given, skip_bad: bool, outputs: Mapping[str, str | None] | None = None) -> dict[str, list[str]]:
    """Finds the files of each input, and does `check_inputs`."""
    return check_inputs(given, find_by_location(given), skip_bad, outputs)


def find_by_location(given: Given) -> ByLocation:
    """Finds the files of each location; a location may be a BEIR folder, which has a file for each input.

    Raises:
        InputError: there is no such file.
    """
    return {
        name: {location: find_files([in_beir_folder(name, flag, location)], flag) for location in value}
        for name, (flag, value) in given.items()
        if value
    }


def check_inputs(
    given: Given, found: ByLocation, skip_bad: bool, outputs: Mapping[str, str | None] | None = None
) -> dict[str, list[str]]:
    """Returns the files of each input, each file once, and checks how they begin.

    Prints lines about queries of BEIR that are left out, and about TSV files without quoting. `outputs` are the
    folders that the job writes to, by flag.

    Raises:
        InputError: a file begins wrong, or it is where the job writes.
    """
    files = {name: [*dict.fromkeys(itertools.chain(*of.values()))] for name, of in found.items()}
    names = [name for _, value in given.values() for name in value or []]
    for flag, output in (outputs or {}).items():
        if output:
            refuse_among_inputs(flag, output, names, itertools.chain(*files.values()))
    for name, paths in files.items():
        for path in paths:
            refuse_other_part(name, given[name][0], path)
        check_beginnings(paths, "documents" if name == "corpus" else "questions", skip_bad)
        for path in filter(is_plain, paths):
            print(f"note: {shown(path)}: read without quoting, because its quotes enclose no cells")
        for path in paths if name != "corpus" else []:
            if is_judgments(path) and (line := left_out(path)):
                print(line)
    return files


def find_labels(
    names: list[str] | None, inputs: Mapping[str, list[str]] | None = None, skip_bad: bool = False
) -> Labels:
    """Reads what is known about golds beside their own files.

    `names` are those of --accepted_labels, whose files have the decisions of people about suspects. `inputs` are from
    `find_inputs`; the corpus among them is read if a file of questions names golds by their ids.

    Raises:
        InputError: a file does not exist, a line is wrong, two lines contradict each other, or no passage has an id.
    """
    labels = Labels.of(good_records(find_files(names or [], "accepted_labels"), "labels"))
    asked = (path for name, paths in (inputs or {}).items() if name != "corpus" for path in paths)
    naming = next(filter(_has_gold_ids, asked), None)
    if naming is None or not inputs:
        return labels
    passages = PassagesById.of(shown_files(inputs["corpus"]), _named_passages(inputs["corpus"], skip_bad))
    if not len(passages.ids):
        keys = ", ".join(f"`{key}`" for key in ID_KEYS)
        raise InputError(f"{passages.source}: no passage has an id ({keys}), but {naming} has `gold_ids`")
    return replace(labels, passages=passages)


def _has_gold_ids(path: str) -> bool:
    """Returns whether the first good record of a file of questions names golds by their ids."""
    records = [] if is_judgments(path) else read_records(path, "questions", labels=None)
    first = next((record for _, record in records if isinstance(record, QARecord)), None)
    return first is not None and first.gold_ids is not None


def _named_passages(files: list[str], skip_bad: bool) -> Iterator[NamedPassage]:
    for path in files:
        for line, found in read_records(path, "named documents"):
            if isinstance(found, str):
                if not skip_bad:
                    raise InputError(found)
            elif isinstance(found, tuple) and found[0] is not None:
                yield NamedPassage(found[0], found[1], path, line)
