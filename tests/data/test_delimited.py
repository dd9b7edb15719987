"""CSV and TSV files with a header hold questions and passages like JSONL."""

import csv
import gzip
import json

import pytest

from rqa_ray.data import delimited
from rqa_ray.data.records import find_inputs, good_records
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError

ROWS = [
    {"anchor": "What boils?", "positive": 'Water, they\nsay "boils".', "negative": "Ice melts."},
    {"anchor": "Was ist kalt?", "positive": "Eis\tist kühl."},
]


def quoted(cells: list[str], delimiter: str) -> str:
    return delimiter.join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n"


def written(path, delimiter: str, encoding: str = "utf-8") -> str:
    names = ["anchor", "positive", "negative"]
    lines = [quoted(names, delimiter), *(quoted([row.get(name, "") for name in names], delimiter) for row in ROWS)]
    content = "".join(lines).encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [("a.csv", ",", "utf-8"), ("a.csv", ",", "utf-8-sig"), ("a.csv.gz", ",", "utf-8"), ("a.tsv", "\t", "utf-8")],
)
def test_rows_are_the_records_that_jsonl_has(tmp_path, capsys, name, delimiter, encoding):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = written(tmp_path / name, delimiter, encoding)
    assert find_inputs({"train": ("train_file", [path])}, skip_bad=False) == {"train": [path]}
    assert "without quoting" not in capsys.readouterr().out
    assert list(good_records([path], "questions")) == list(good_records([str(lines)], "questions"))


def test_a_row_of_passages_keeps_its_filled_cells(tmp_path):
    path = tmp_path / "documents.csv"
    path.write_text("text,source,title\nIt boils.,a.txt,\nIt melts.,,Ice\n")
    found = list(good_records([str(path)], "documents"))
    assert found == [Document("It boils.", "", {"source": "a.txt"}), Document("It melts.", "", {"title": "Ice"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,title\na,b\nc,d,e\n", "3: 1 cell more than the header has; put a cell with a delimiter in quotes"),
        (b"text,title\nc,d,e,f\n", "2: 2 cells more than the header has; put a cell with a delimiter in quotes"),
        (b"text;title\na;b\n", "1: one column, 'text;title'; cells have to be separated by commas, not by ';'"),
        (b"text,text\na,b\n", "1: the header has the column `text` twice"),
        (b'text\n"a" b\n', "2: not CSV (',' expected after '\"')"),
        (b"body\na\n", "2: a document needs `page_content` (LocalRQA) or `text` (raw), found keys `body`"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "documents.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(good_records([str(path)], "documents"))
    assert str(caught.value) == f"{path}:{message}"


def test_the_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "documents.csv"
    path.write_bytes(b"text\n" + b"a long line\n" * 20_000 + b"\xff\n" + b"more\n")
    with pytest.raises(InputError, match=r"documents.csv:20002: not UTF-8"):
        list(good_records([str(path)], "documents"))


@pytest.mark.parametrize(
    "content",
    [
        b",text,source\n0,It boils.,a\n1,It melts.,b\n",  # an index, as pandas writes one
        b"text,source,\nIt boils.,a,\nIt melts.,b,\n",
        b"\n text , source\nIt boils.,a\n,,\nIt melts.,b,,\n,\n",
    ],
)
def test_columns_without_names_blank_rows_and_blanks_in_the_header_are_left_out(tmp_path, content):
    path = tmp_path / "documents.csv"
    path.write_bytes(content)
    found = list(good_records([str(path)], "documents"))
    assert found == [Document("It boils.", "", {"source": "a"}), Document("It melts.", "", {"source": "b"})]


def test_a_passage_may_have_a_title_only(tmp_path):
    path = tmp_path / "documents.csv"
    path.write_text("title,text\nIce,\n")
    assert list(good_records([str(path)], "documents")) == [Document("", "", {"title": "Ice"})]


@pytest.mark.parametrize(
    ("lines", "passages"),
    [
        (['"Ice" melts.\ta', 'It is 5" long.\tb'], ['"Ice" melts.', 'It is 5" long.']),
        (['"It boils.\ta', "It melts.\tb"], ['"It boils.', "It melts."]),
        (['a\t"It boils', 'b\tIt melts"'], ["a", "b"]),  # as CSV, one row whose last cell has two lines
    ],
)
def test_a_tsv_file_whose_quotes_enclose_no_cells_is_read_without_quoting_and_this_is_said(
    tmp_path, capsys, lines, passages
):
    path = tmp_path / "documents.tsv"
    path.write_text("text\ttitle\n" + "".join(f"{line}\n" for line in lines))
    find_inputs({"corpus": ("document_path", [str(path)])}, skip_bad=False)
    said = "documents.tsv: read without quoting, because its quotes enclose no cells\n"
    assert capsys.readouterr().out.endswith(said)
    assert [found.page_content for found in good_records([str(path)], "documents")] == passages


def test_an_empty_file_has_no_records(tmp_path):
    path = tmp_path / "documents.csv"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no records in it"):
        find_inputs({"corpus": ("document_path", [str(path)])}, skip_bad=False)


@pytest.mark.parametrize("content", ["text\n" + "x" * 200, 'text\n"' + "x\n" * 200])
def test_a_row_without_end_is_refused_where_it_is_too_long(tmp_path, monkeypatch, content):
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 100)
    path = tmp_path / "documents.csv"
    path.write_text(content)
    before = csv.field_size_limit()  # of the whole process
    try:
        with pytest.raises(InputError, match=r"documents.csv:\d+: a row of more than 100 bytes, which is no record"):
            list(good_records([str(path)], "documents"))
    finally:
        csv.field_size_limit(before)
