"""Files to records, one after the other; a bad record comes back as data."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rqa_ray.data.files import (
    MAX_LINE_BYTES,
    has_suffix,
    lines_before,
    open_file,
    open_random_access,
    read_lines,
)
from rqa_ray.data.pickles import load_documents
from rqa_ray.data.schema import Document, QARecord, RecordError, parse_document, parse_json, parse_qa_record
from rqa_ray.errors import InputError


def read_records(
    path: str, kind: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, Document | QARecord | str]]:
    """(line, record) of a file of `questions` or `documents`; a string for a record says what is wrong there.

    Blank lines are skipped. A pickle's lines are the numbers of its documents, those of Parquet of its rows. Of a
    range of bytes the lines are numbered as `files.read_lines` does; what is said of a line counts from the file's
    beginning.
    """
    parse = parse_document if kind == "documents" else parse_qa_record
    if has_suffix(path, ".pkl"):
        if kind != "documents":
            yield 0, f"{path}: questions have to be JSONL; a pickle can only hold documents"
            return
        try:
            with open_file(path) as file:
                documents = load_documents(file, path)
        except InputError as error:
            yield 0, str(error)
            return
        yield from ((number, Document(**document)) for number, document in enumerate(documents, start=1))
        return
    is_parquet = has_suffix(path, ".parquet")
    try:
        before = None  # counted where something is wrong
        for number, value in _parquet_rows(path) if is_parquet else read_lines(path, start, end):
            record: Document | QARecord | str
            try:
                record = parse(value if is_parquet else _parse_line(value))
            except UnicodeDecodeError as error:
                record = f"not UTF-8 ({error.reason} at byte {error.start})"
            except RecordError as error:
                record = str(error)
            if isinstance(record, str):
                before = lines_before(path, start) if before is None else before
                record = f"{path}:{before + number - start}: {record}"
            yield number, record
    except (OSError, EOFError, pa.ArrowException) as error:
        yield 0, f"{path}: cannot be read ({str(error).splitlines()[0]})"


def _parse_line(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise RecordError(f"a line of more than {MAX_LINE_BYTES:,} bytes, which is no record")
    return parse_json(line.decode("utf-8"))


def _parquet_rows(path: str) -> Iterator[tuple[int, Any]]:
    """(row number from 1, row). One schema for all rows fills what a record lacks with nulls: they are left out."""
    with open_random_access(path) as file:
        batches = pq.ParquetFile(file).iter_batches(batch_size=256)
        rows = (row for batch in batches for row in batch.to_pylist(maps_as_pydicts="lossy"))
        yield from enumerate(map(_without_nulls, rows), start=1)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    # Dates, decimals and bytes have no form in JSON, in which metadata is kept.
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def check_beginnings(files: list[str], kind: str, skip_bad: bool = False) -> None:
    """Reads the first record of each file: a file of another kind, or an empty one, is found before Ray starts.

    Raises:
        InputError: what is wrong with it; with `skip_bad` only where no record is right.
    """
    for path in files:
        if has_suffix(path, ".pkl"):  # read whole or not at all
            continue
        first, problem = None, f"{path}: no records in it"
        for _, first in read_records(path, kind):
            if not isinstance(first, str) or not skip_bad:
                break
        if first is None or isinstance(first, str):
            raise InputError(first or problem)
