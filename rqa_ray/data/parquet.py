"""Reads the rows of Parquet files, as many at a time as the memory holds: a file of kilobytes may have terabytes.

A text that occurs again is stored once, in the dictionary of its column, and becomes a text of its own in each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rqa_ray.data.files import MAX_LINE_BYTES
from rqa_ray.errors import InputError
from rqa_ray.places import open_random_access, shown

ROWS_AT_ONCE = 256
READ_BYTES = 2**20


def row_ranges(path: str, range_bytes: int) -> list[tuple[int, int | None]]:
    """Returns (start, end) row numbers of parts with whole row groups, each of `range_bytes` or a little more.

    A file with only one part has (0, None).
    """
    try:
        with open_random_access(path) as file:
            metadata = pq.ParquetFile(file).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    except (OSError, pa.ArrowException):  # reading the file will say so
        return [(0, None)]
    ranges, start, end, size = [], 0, 0, 0
    for group in groups:
        end, size = end + group.num_rows, size + group.total_byte_size
        if size >= range_bytes:
            ranges.append((start, end))
            start, size = end, 0
    ranges += [(start, end)] if end > start else []
    return ranges if len(ranges) > 1 else [(0, None)]


def read_rows(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (row number from 1, row) of the row groups that begin within a range of rows.

    Raises:
        InputError: a row has more than `MAX_LINE_BYTES`, or a map has keys that are no text.
    """
    with open_random_access(path) as opened:
        file = pq.ParquetFile(opened)
        number = 0
        for group in range(file.num_row_groups):
            begin, number = number, number + file.metadata.row_group(group).num_rows
            if start <= begin and (end is None or begin < end):
                yield from enumerate(_rows_of(path, file, opened, group), start=begin + 1)


def _rows_of(path: str, file: pq.ParquetFile, opened: pa.NativeFile, group: int) -> Iterator[Any]:
    """Yields the rows of one row group: Arrow cannot join the dictionaries of lists in several row groups."""
    too_large = f"{shown(path)}: a row of more than {MAX_LINE_BYTES:,} bytes, which is no record"
    longest = _longest_texts(file, opened, group)
    if max(longest.values(), default=0) > MAX_LINE_BYTES:
        raise InputError(too_large)
    rows_at_once = MAX_LINE_BYTES // (1 + _large_row(file.metadata.row_group(group), longest))
    for batch in file.iter_batches(batch_size=max(1, min(ROWS_AT_ONCE, rows_at_once)), row_groups=[group]):
        if sum(column.nbytes for column in batch.columns if not pa.types.is_dictionary(column.type)) > MAX_LINE_BYTES:
            if any(batch.slice(place, 1).nbytes > MAX_LINE_BYTES for place in range(len(batch))):
                raise InputError(too_large)
        try:
            yield from batch.to_pylist(maps_as_pydicts="lossy")
        except TypeError as error:
            what = f"a map has keys that are no text ({error}); write them as text"
            raise InputError(f"{shown(path)}: {what}") from None


def _longest_texts(file: pq.ParquetFile, opened: pa.NativeFile, group: int) -> dict[str, int]:
    """Returns the bytes of the longest text in the dictionary of each column of a row group, by the column's path."""
    metadata = file.metadata.row_group(group)
    columns = [metadata.column(place) for place in range(metadata.num_columns if metadata.num_rows else 0)]
    texts = [column for column in columns if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY"]
    names, found = [column.path_in_schema for column in texts], {}
    options = {"metadata": file.metadata, "buffer_size": READ_BYTES}  # reads no more of a column than it needs
    encoded = pq.ParquetFile(opened, read_dictionary=names, **options)
    for name in names:
        with suppress(pa.ArrowException):  # numbers that are stored as bytes: as long as their mean
            first = next(encoded.iter_batches(batch_size=1, row_groups=[group], columns=[name]))
            found[name] = max(map(_longest, first.columns), default=0)
    return found


def _large_row(metadata: pq.RowGroupMetaData, longest: dict[str, int]) -> int:
    """Estimates the bytes of a large row: as many values as the mean row has, each the longest of its dictionary."""
    total = 0
    for column in (metadata.column(place) for place in range(metadata.num_columns)):
        mean = column.total_uncompressed_size // max(1, column.num_values)
        values = -(-column.num_values // max(1, metadata.num_rows))
        total += max(mean, longest.get(column.path_in_schema, 0)) * values
    return total


def _longest(array: Any) -> int:
    """Returns the bytes of the longest text in the dictionaries of an array, which may be nested."""
    if pa.types.is_dictionary(array.type):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return max(map(_longest, array.flatten()), default=0)
    if pa.types.is_map(array.type):
        return max(_longest(array.keys), _longest(array.items))
    return _longest(array.values) if pa.types.is_nested(array.type) else 0
