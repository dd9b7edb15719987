"""Every kind of file gives the same records; a bad record becomes a line that says where it is."""

import datetime
import gzip
import itertools
import json
import pickle
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data import files, records
from rqa_ray.data.records import check_beginnings, read_records
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError
from tests.data.test_pickles import text


def doc(text: str, **metadata) -> dict:
    return {"page_content": text, "metadata": metadata}


QUESTIONS = [
    {"questions": ["one", "two"], "gold_docs": [doc("alpha", source="a", title="A")], "hard_neg_docs": []},
    {
        "question": "three",
        "gold_docs": [doc("beta", source="b")],
        "hard_neg_docs": [doc("alpha", source="a", title="A")],
    },
]
DOCUMENTS = [doc("alpha", source="a", title="A"), {"text": "beta", "source": "b"}, doc("gamma")]


def write(path: Path, records: list[dict]) -> str:
    text = "".join(json.dumps(record, default=str) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=1)
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".json", ".parquet"])
@pytest.mark.parametrize(("kind", "written"), [("questions", QUESTIONS), ("documents", DOCUMENTS)])
def test_every_kind_of_file_holds_the_same_records(tmp_path, suffix, kind, written) -> None:
    if suffix == ".parquet":  # whose one schema needs the fields of all records in each
        names = list(dict.fromkeys(name for record in written for name in record))
        written = [{name: record.get(name) for name in names} for record in written]
        plain = [{name: value for name, value in record.items() if value is not None} for record in written]
    else:
        plain = written
    expected = list(read_records(write(tmp_path / "plain.jsonl", plain), kind))
    assert len(expected) == len(written) and not any(isinstance(record, str) for _, record in expected)
    assert list(read_records(write(tmp_path / f"other{suffix}", written), kind)) == expected


def test_metadata_may_be_json_in_a_string(tmp_path) -> None:
    path = write(
        tmp_path / "d.parquet", [{"page_content": "alpha", "metadata": json.dumps({"source": "a", "n": [1]})}]
    )
    [(line, record)] = read_records(path, "documents")
    assert line == 1 and record.metadata == {"source": "a", "n": [1]}
    bad = write(tmp_path / "bad.parquet", [{"page_content": "alpha", "metadata": "a"}])
    assert [record for _, record in read_records(bad, "documents")] == [
        f"{bad}:1: `metadata` has to be an object, or a string with a JSON object, found 'a'"
    ]


def test_a_date_in_parquet_becomes_its_text(tmp_path) -> None:
    day = datetime.date(2026, 11, 25)
    path = write(tmp_path / "d.parquet", [{"text": "alpha", "source": "a", "day": day}])
    [(_, record)] = read_records(path, "documents")
    assert json.loads(json.dumps(record.to_dict()))["metadata"] == {"source": "a", "day": "2026-11-25"}


def test_bytes_in_parquet_are_the_text_that_they_encode_or_refused(tmp_path) -> None:
    kind = pa.schema([("text", pa.binary()), ("title", pa.binary())])
    rows = [
        {"text": "blé".encode(), "title": b"A"},
        {"text": b"\xff", "title": b"B"},
        {"text": b"b", "title": b"\xe9"},
    ]
    pq.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "d.parquet")
    good, *bad = [record for _, record in read_records(str(tmp_path / "d.parquet"), "documents")]
    assert good.fmt_content == "Title: A\nContent:\nblé"
    assert bad == [
        f"{tmp_path}/d.parquet:2: not UTF-8 (invalid start byte at byte 0)",
        f"{tmp_path}/d.parquet:3: not UTF-8 (unexpected end of data at byte 0)",
    ]
    kind = pa.schema([("question", pa.binary()), ("gold_docs", pa.list_(pa.struct([("text", pa.binary())])))])
    pq.write_table(
        pa.Table.from_pylist([{"question": b"one", "gold_docs": [{"text": b"alpha"}]}], kind), tmp_path / "q.parquet"
    )
    [(_, record)] = read_records(str(tmp_path / "q.parquet"), "questions")
    assert record.questions == ["one"] and record.gold_docs[0].page_content == "alpha"


def test_what_pandas_writes_for_a_missing_value_is_missing(tmp_path) -> None:
    nan = float("nan")
    rows = [{"text": "alpha", "source": 1.0, "more": {"n": nan}}, {"text": "beta", "source": nan, "more": {"n": 1.0}}]
    one = write(tmp_path / "d.jsonl", rows)
    assert "NaN" in Path(one).read_text()
    other = write(tmp_path / "d.parquet", rows)
    for path in (one, other):
        first, second = [record for _, record in read_records(path, "documents")]
        assert first.fmt_content == "Source: 1.0\nContent:\nalpha" and second.fmt_content == "Content:\nbeta"
        json.dumps([first.to_dict(), second.to_dict()], allow_nan=False)


def test_a_bad_document_of_a_pickle_is_named_by_its_number(tmp_path) -> None:
    documents = [doc("alpha", source=float("nan")), doc("beta", source=["b"])]
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(documents))
    (_, first), (line, second) = read_records(str(tmp_path / "d.pkl"), "documents")
    assert first.fmt_content == "Content:\nalpha" and line == 2
    assert second == f"{tmp_path}/d.pkl:2: `source` has to be text or a number, found a list"


def test_a_document_too_deep_to_read_is_one_bad_record(tmp_path) -> None:
    deep = b"]" * 700 + b"a" * 699  # 700 lists in each other, as pickle.dumps cannot write them
    metadata = text("metadata") + b"}" + text("deep") + deep + b"s"
    one, other = (b"}" + text("page_content") + text(name) + b"s" for name in ("alpha", "beta"))
    (tmp_path / "d.pkl").write_bytes(b"\x80\x04](" + one + metadata + b"s" + other + b"e.")
    (_, first), (_, second) = read_records(str(tmp_path / "d.pkl"), "documents")
    assert first == f"{tmp_path}/d.pkl:1: lists or objects in each other, too deep to read"
    assert second.page_content == "beta"


def write_map(path: Path, keys: pa.DataType, metadata: list) -> str:
    kind = pa.schema([("page_content", pa.string()), ("metadata", pa.map_(keys, keys))])
    pq.write_table(pa.table({"page_content": ["alpha"], "metadata": [metadata]}, kind), path)
    return str(path)


@pytest.mark.parametrize("keys", [pa.string(), pa.binary()], ids=str)
def test_metadata_may_be_a_map(tmp_path, keys) -> None:
    path = write_map(tmp_path / "d.parquet", keys, [("source", "a"), ("title", "A")])
    [(_, record)] = read_records(path, "documents")
    assert record == Document("alpha", "Source: a\nTitle: A\nContent:\nalpha", {"source": "a", "title": "A"})


def test_keys_of_a_map_that_are_no_text_are_refused_in_one_line(tmp_path) -> None:
    path = write_map(tmp_path / "d.parquet", pa.list_(pa.string()), [(["source"], ["a"])])
    [(_, problem)] = read_records(path, "documents")
    assert problem == f"{path}: a map has keys that are no text (unhashable type: 'list'); write them as text"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_that_is_not_what_its_suffix_says_is_one_line(tmp_path, suffix) -> None:
    path = tmp_path / f"f{suffix}"
    path.write_bytes(b"not that at all")
    with pytest.raises(InputError, match=rf"^{path}: cannot be read \([^\n]+\)$"):
        check_beginnings([str(path)], "questions")


# Ranges of bytes, by which large files are read side by side


@given(
    st.lists(st.sampled_from(["", "  ", "a", "bb" * 9, "é" * 20, "\r"]), max_size=12),
    st.lists(st.integers(1, 60), max_size=5, unique=True),
    st.booleans(),
)
def test_the_ranges_of_a_file_hold_each_of_its_lines_once_and_in_order(lines, cuts, ends_with_newline) -> None:
    content = "\n".join(lines).encode() + b"\n" * ends_with_newline
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(content)
        file.flush()
        whole = list(files.read_lines(file.name))
        ends = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
        parts = [list(files.read_lines(file.name, start, end)) for start, end in itertools.pairwise(ends)]
        for start, part in zip(ends, parts, strict=False):
            before = files.lines_before(file.name, start)
            assert all(whole_line in whole for whole_line in [(n - start + before, line) for n, line in part])
    numbers = [number for part in parts for number, _ in part]
    assert numbers == sorted(set(numbers))
    assert [line for part in parts for _, line in part] == [line for _, line in whole]


def test_only_large_files_of_plain_lines_are_read_in_ranges(tmp_path) -> None:
    for name, expected in {
        "small.jsonl": [(0, None)],
        "large.jsonl": [(0, 10), (10, 20), (20, 25)],
        "large.jsonl.gz": [(0, None)],
    }.items():
        (tmp_path / name).write_bytes(b"x" * (5 if name.startswith("small") else 25))
        assert files.byte_ranges(str(tmp_path / name), 10) == expected


def test_a_bad_line_in_a_range_is_named_by_its_line_in_the_file(tmp_path) -> None:
    path = write(tmp_path / "d.jsonl", DOCUMENTS)
    Path(path).write_text("\n" + Path(path).read_text() + "oops\n")
    size = Path(path).stat().st_size
    problems = [record for _, record in read_records(path, "documents", 20, size) if isinstance(record, str)]
    assert len(problems) == 1 and problems[0].startswith(f"{path}:5: not JSON (")


def test_a_line_without_end_is_one_bad_record_and_the_next_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(doc("x" * 1000)) + "\n" + json.dumps(doc("beta")) + "\n")
    [(_, first), (line, second)] = read_records(str(path), "documents")
    assert first == f"{path}:1: a line of more than 100 bytes, which is no record"
    assert line == 2 and second.page_content == "beta"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"questions": ' + json.dumps(["q"] * 100_001) + ', "gold_docs": [{"page_content": "a"}]}',
            "100,001 questions, the limit is 100,000",
        ),
        ('{"questions": ' + "[" * 100_000, "not JSON (maximum recursion depth"),
        ("\x00", "not JSON ("),
        (
            '{"a": 1, "b": 2}',
            "or `question` (LocalRQA, flat), found keys `a`, `b`",
        ),
    ],
)
def test_absurd_input_is_one_line(tmp_path, line, problem) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    [(_, found)] = read_records(str(path), "questions")
    assert found.startswith(f"{path}:1: ") and problem in found and "\n" not in found and len(found) < 500


@pytest.mark.parametrize("text", ["a\x00b", "\ud800 alone", "x" * 10_000_000, "", " "])
def test_strange_text_is_kept_as_it_is(tmp_path, text) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(doc(text, source="s")) + "\n")
    [(_, found)] = read_records(str(path), "documents")
    assert found.page_content == text and isinstance(found.passage_id, int)


def test_a_first_record_that_is_bad_is_refused_before_ray_unless_bad_ones_are_skipped(tmp_path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("oops\n" + json.dumps(doc("a")) + "\n")
    with pytest.raises(InputError, match=rf"^{path}:1: not JSON"):
        check_beginnings([str(path)], "documents")
    check_beginnings([str(path)], "documents", skip_bad=True)
    path.write_text("oops\n\noops\n")
    with pytest.raises(InputError, match=rf"^{path}:3: not JSON"):
        check_beginnings([str(path)], "documents", skip_bad=True)


LINES = [json.dumps(record, ensure_ascii=False).encode() for record in (*QUESTIONS, *DOCUMENTS)]
VALUES = [b"null", b"[]", b"{}", b'""', b"1e999", b"NaN", b'"\\ud800"', b"[" * 2000, b"\xff", b"\x00", b"\xe2\x80\xa8"]


@given(st.sampled_from(LINES), st.sampled_from(["questions", "documents"]), st.data())
@settings(max_examples=2000, database=None)
def test_a_mutated_line_is_a_record_or_one_line_that_names_it(line, kind, data) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.tuples(st.integers(0, len(line)), st.integers(0, len(line)))))
        change = data.draw(st.sampled_from(["cut", "swap", "double", "flip"]))
        middle = {
            "cut": b"",
            "swap": data.draw(st.sampled_from(VALUES)),
            "double": line[start:end] * 2,
            "flip": bytes([data.draw(st.integers(0, 255))]),
        }[change]
        line = line[:start] + middle.replace(b"\n", b" ") + line[end:]
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"\n" + line + b"\n")
        file.flush()
        found = list(read_records(file.name, kind))
        assert len(found) == (1 if line.removesuffix(b"\r").strip() else 0)
        for number, record in found:
            assert number == 2
            if isinstance(record, str):
                assert record.startswith(f"{file.name}:2: ") and "\n" not in record and len(record) < 500
