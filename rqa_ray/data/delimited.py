"""Reads CSV and TSV files with a header, as Python's `csv` does: a quoted cell may hold line breaks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from rqa_ray.data.files import MAX_LINE_BYTES, has_suffix
from rqa_ray.data.formats import RecordError
from rqa_ray.errors import InputError
from rqa_ray.places import open_file

SURPLUS = ""  # the key of cells that have no column


def read_delimited(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line at which the row ends, cells by column) of a file, which is read whole.

    Raises:
        InputError: the file has no header, two columns of one name, or is not UTF-8 or CSV.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if has_suffix(path, ".tsv", ".tsv.gz", ".tsv.zst") else ","
    with io.TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restkey=SURPLUS, strict=True, delimiter=delimiter)
        try:
            names = rows.fieldnames or []
            twice = [name for place, name in enumerate(names) if name in names[:place]]
            if twice:
                raise InputError(f"{path}:1: the header has the column `{twice[0]}` twice")
            for row in rows:
                yield rows.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not CSV"
            raise InputError(f"{path}:{rows.line_num + 1}: {what} ({error})") from None


def filled_cells(row: dict[str, Any]) -> dict[str, str]:
    """Returns the cells of a row that are not empty: a delimited file has no other way to leave a value out.

    Raises:
        RecordError: the row has more cells than the header.
    """
    if SURPLUS in row:
        raise RecordError(f"{len(row[SURPLUS])} cells more than the header has; put a cell with a delimiter in quotes")
    return {name: cell for name, cell in row.items() if cell}
