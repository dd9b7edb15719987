"""Reads CSV and TSV files with a header, as Python's `csv` does: a quoted cell may hold line breaks.

Many programs write TSV without quoting, where a quote is a character like others. So the cells of a TSV file are read
without quoting if the quotes in the file enclose no cells.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any

from rqa_ray.data.files import MAX_LINE_BYTES, has_suffix
from rqa_ray.data.values import RecordError
from rqa_ray.errors import InputError
from rqa_ray.places import open_file, shown

SURPLUS = None  # the key of cells that have no column
DELIMITERS = ",;\t|"


def read_delimited(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yields (line at which the row ends, cells by column) of a file, which is read whole.

    Rows without a filled cell are skipped, and so are columns without a name, such as the index that pandas writes.

    Raises:
        InputError: two columns have one name, or the file is not UTF-8 or CSV.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    for number, row in rows:
        cells: dict[Any, Any] = {name: cell for name, cell in zip(header, row, strict=False) if name}
        surplus = [cell for cell in row[len(header) :] if cell]
        yield number, cells | ({SURPLUS: surplus} if surplus else {})


def columns_of(path: str) -> list[str]:
    """Returns the names of the columns; none if the file is empty. Raises what `read_delimited` raises."""
    return next(_rows(path), (0, []))[1]


def filled_cells(row: dict[Any, Any]) -> dict[str, str]:
    """Returns the cells of a row that are not empty: a delimited file has no other way to leave a value out.

    The text of a passage stays: a passage may have a title only.

    Raises:
        RecordError: the row has more cells than the header.
    """
    if SURPLUS in row:
        number = len(row[SURPLUS])
        raise RecordError(
            f"{number} cell{'s' * (number > 1)} more than the header has; put a cell with a delimiter in quotes"
        )
    return {name: cell for name, cell in row.items() if cell or name == "text"}


def is_plain(path: str) -> bool:
    """Returns whether a TSV file is read without quoting, because its quotes enclose no cells: a pass over the file.

    They enclose none if they are not balanced, or if cells with line breaks would make rows of lines that are each as
    wide as the header.
    """
    if not _is_tsv(path):
        return False
    try:
        with_breaks = any("\n" in cell for _, row in _rows(path, csv.QUOTE_MINIMAL) for cell in row)
    except _NotDelimited:
        return True
    widths = {len(row) for _, row in _rows(path, csv.QUOTE_NONE)} if with_breaks else set()
    return len(widths) == 1 and widths != {1}


class _NotDelimited(InputError):
    """The quotes of a file are not those of CSV."""


def _is_tsv(path: str) -> bool:
    return has_suffix(path, ".tsv", ".tsv.gz", ".tsv.zst")


def _rows(path: str, quoting: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells) of the header, without blanks around its names, and of the rows with a filled cell."""
    csv.field_size_limit(MAX_LINE_BYTES)
    if quoting is None:
        quoting = csv.QUOTE_NONE if is_plain(path) else csv.QUOTE_MINIMAL
    delimiter = "\t" if _is_tsv(path) else ","
    held = [0]  # bytes of the lines of a row
    rows = csv.reader(_lines(path, held), strict=True, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    is_header = True
    try:
        for row in rows:
            held[0] = 0
            if not any(cell.strip() for cell in row):
                continue
            yield rows.line_num, _header(path, row, delimiter) if is_header else row
            is_header = False
    except csv.Error as error:
        raise _NotDelimited(f"{shown(path)}:{rows.line_num}: not CSV ({error})") from None


def _header(path: str, row: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in row]
    twice = [name for place, name in enumerate(names) if name and name in names[:place]]
    if twice:
        raise InputError(f"{shown(path)}:1: the header has the column `{twice[0]}` twice")
    other = next((one for one in DELIMITERS if one != delimiter and one in names[0]), None)
    if len(names) == 1 and other:
        raise InputError(
            f"{shown(path)}:1: one column, {names[0][:60]!r}; cells have to be separated by "
            f"{'tabs' if delimiter != ',' else 'commas'}, not by {other!r}"
        )
    return names


def _lines(path: str, held: list[int]) -> Iterator[str]:
    """Yields the lines of a file in UTF-8, which are decoded one by one, so that an error names its line.

    Adds their bytes to `held`, and refuses a row that has more than any record.
    """
    with open_file(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            held[0] += len(line)
            if held[0] > MAX_LINE_BYTES:
                what = f"a row of more than {MAX_LINE_BYTES:,} bytes, which is no record; is a quote missing?"
                raise _NotDelimited(f"{shown(path)}:{number}: {what}")
            if not line:
                return
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{shown(path)}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
