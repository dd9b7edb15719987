"""Every kind of file gives the same records; a bad one comes back as a line that says where it is."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqa_ray.data.records import check_beginnings, read_records
from rqa_ray.errors import InputError


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
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=1)
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".json", ".parquet"])
@pytest.mark.parametrize(("kind", "records"), [("questions", QUESTIONS), ("documents", DOCUMENTS)])
def test_every_kind_of_file_holds_the_same_records(tmp_path, suffix, kind, records) -> None:
    if suffix == ".parquet":  # whose one schema needs the fields of all records in each
        names = list(dict.fromkeys(name for record in records for name in record))
        records = [{name: record.get(name) for name in names} for record in records]
        plain = [{name: value for name, value in record.items() if value is not None} for record in records]
    else:
        plain = records
    expected = list(read_records(write(tmp_path / "plain.jsonl", plain), kind))
    assert len(expected) == len(records) and not any(isinstance(record, str) for _, record in expected)
    assert list(read_records(write(tmp_path / f"other{suffix}", records), kind)) == expected


def test_metadata_may_be_json_in_a_string(tmp_path) -> None:
    path = write(
        tmp_path / "d.parquet", [{"page_content": "alpha", "metadata": json.dumps({"source": "a", "n": [1]})}]
    )
    [(line, record)] = read_records(path, "documents")
    assert line == 1 and record.metadata == {"source": "a", "n": [1]}
    bad = write(tmp_path / "bad.parquet", [{"page_content": "alpha", "metadata": "a"}])
    assert [record for _, record in read_records(bad, "documents")] == [
        f"{bad}:1: `metadata` has to be an object, or JSON of one, found 'a'"
    ]


def test_metadata_may_be_a_map(tmp_path) -> None:
    kind = pa.schema([("page_content", pa.string()), ("metadata", pa.map_(pa.string(), pa.string()))])
    pq.write_table(pa.Table.from_pylist([doc("alpha", source="a")], kind), tmp_path / "d.parquet")
    [(_, record)] = read_records(str(tmp_path / "d.parquet"), "documents")
    assert (
        record.passage_id
        == next(read_records(write(tmp_path / "d.jsonl", [doc("alpha", source="a")]), "documents"))[1].passage_id
    )


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_that_is_not_what_its_suffix_says_is_one_line(tmp_path, suffix) -> None:
    path = tmp_path / f"f{suffix}"
    path.write_bytes(b"not that at all")
    with pytest.raises(InputError, match=rf"^{path}: cannot be read \([^\n]+\)$"):
        check_beginnings([str(path)], "questions")
