"""Parquet files that unpack to far more than they store are read in little memory, or refused in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqa_ray.data import parquet
from rqa_ray.data.records import read_records
from rqa_ray.errors import InputError

ROWS = 300


def write_repeated(path: Path, texts: list[str], as_list: bool = False) -> str:
    """Writes a file whose rows all have the last text, which the file stores once."""
    encoded = pa.DictionaryArray.from_arrays(np.r_[0, np.full(ROWS - 1, len(texts) - 1)].astype(np.int32), texts)
    column = pa.ListArray.from_arrays(np.arange(ROWS + 1, dtype=np.int32), encoded) if as_list else encoded
    numbers = list(map(str, range(ROWS)))
    pq.write_table(pa.table({"text": column, "source": numbers}), path, store_schema=False)
    return str(path)


@pytest.mark.parametrize("as_list", [False, True])
def test_rows_that_repeat_a_long_text_are_in_memory_a_few_at_a_time(tmp_path, monkeypatch, as_list):
    monkeypatch.setattr(parquet, "MAX_LINE_BYTES", 100_000)
    path = write_repeated(tmp_path / "d.parquet", ["short", "x" * 30_000], as_list)
    assert Path(path).stat().st_size < 50_000
    before, rows = pa.total_allocated_bytes(), []
    for number, row in parquet.read_rows(path):
        rows.append((number, row["source"]))
        assert pa.total_allocated_bytes() - before < 1_000_000  # all rows together have 9 MB
    assert rows == [(number + 1, str(number)) for number in range(ROWS)]


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_row_that_is_no_record_is_refused_in_one_line(tmp_path, monkeypatch, use_dictionary):
    monkeypatch.setattr(parquet, "MAX_LINE_BYTES", 10_000)
    path = str(tmp_path / "d.parquet")
    table = pa.table({"text": ["x"] * 2_000 + ["x" * 20_000], "source": ["s"] * 2_001})
    pq.write_table(table, path, use_dictionary=use_dictionary)
    message = f"{path}: a row of more than 10,000 bytes, which is no record"
    with pytest.raises(InputError, match=f"^{message}$"):
        list(parquet.read_rows(path))
    *_, (_, last) = read_records(path, "documents")
    assert last == message


def test_rows_are_numbered_through_all_row_groups_of_a_range(tmp_path):
    path = str(tmp_path / "d.parquet")
    pq.write_table(pa.table({"n": range(10)}), path, row_group_size=3)
    assert [(number, row["n"]) for number, row in parquet.read_rows(path, 3, 9)] == [(n + 1, n) for n in range(3, 9)]
    assert parquet.row_ranges(path, 1) == [(0, 3), (3, 6), (6, 9), (9, 10)]
