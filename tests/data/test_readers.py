"""Reading with real Ray Data: every kind of file gives the same rows."""

import gzip
import json
from pathlib import Path

import pytest

from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import read_settings
from tests.builders import dataclass_document, pickled

FAIRE = Path(__file__).parents[2].parent / "shared/data/faire"


@pytest.fixture(scope="module")
def spec(ray_cluster, tiny_model):
    from rqa_ray.retriever.encoder_settings import ModelSpec

    return ModelSpec(str(tiny_model), read_settings(str(tiny_model), max_seq_length=16))


def read(name: str, paths: list[str], spec):
    from rqa_ray.data.readers import read_inputs

    return read_inputs({name: paths}, spec)[name].tables()


def doc(text: str, source: str) -> dict:
    return {"page_content": text, "metadata": {"source": source, "pages": [1, {"any": text}]}}


RECORDS = [
    {"questions": ["one", "", "two"], "gold_docs": [doc("alpha", "a"), doc("beta", "b")], "hard_neg_docs": []},
    {"questions": ["ONE "], "gold_docs": [doc("gamma", "c")], "hard_neg_docs": [doc("alpha", "a"), doc("delta", "d")]},
]


def write(path: Path, records: list[dict]) -> str:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_a_row_for_each_question_and_gold_with_the_golds_of_its_wording(spec, tmp_path) -> None:
    rows = TrainingRows.from_tables(read("train", [write(tmp_path / "train.jsonl", RECORDS)], spec))
    assert len(rows) == 5  # one: 2 golds, two: 2 golds, ONE: 1 gold; the empty question is left out
    assert [len(golds) for golds in rows.golds] == [3, 3, 2, 2, 3]
    assert rows.negatives.offsets.tolist() == [0, 0, 0, 0, 0, 2]


def test_gzip_the_flat_form_and_several_files_give_the_same_rows(spec, tmp_path) -> None:
    flat = []
    for record in RECORDS:
        rest = {name: value for name, value in record.items() if name != "questions"}
        flat += [{**rest, "question": question} for question in record["questions"] if question]
    paths = [write(tmp_path / "1.jsonl.gz", flat[:2]), write(tmp_path / "2.jsonl", flat[2:])]
    rows = TrainingRows.from_tables(read("train", paths, spec))
    assert [len(golds) for golds in rows.golds] == [3, 3, 2, 2, 3]
    questions = Questions.from_tables(read("eval", paths, spec))
    assert [len(golds) for golds in questions.golds] == [3, 2, 3]


def test_empty_questions_are_counted_though_a_whole_batch_has_no_others(spec, tmp_path) -> None:
    blank = {**RECORDS[0], "questions": ["", ""]}
    path = write(tmp_path / "train.jsonl", [RECORDS[0], *[blank] * 600])
    assert sum(sum(table["num_empty_questions"].to_pylist()) for table in read("train", [path], spec)) == 1201


def test_a_file_of_empty_questions_is_refused(spec, tmp_path) -> None:
    path = write(tmp_path / "eval.jsonl", [{**RECORDS[0], "questions": [""]}])
    with pytest.raises(InputError, match="eval.jsonl: all its questions are empty"):
        read("eval", [path], spec)


def test_a_pickle_and_jsonl_hold_the_same_corpus(spec, tmp_path) -> None:
    documents = [doc("alpha", "a"), doc("beta", "b"), doc("alpha", "a"), doc("alpha", "e")]
    objects = pickled(
        dataclass_document, "local_rqa.schema.document", lambda make: [make(**fields) for fields in documents], 4
    )
    (tmp_path / "documents.pkl").write_bytes(objects)
    write(tmp_path / "documents.jsonl", documents)
    one, other = (
        Corpus.from_tables(read("corpus", [str(tmp_path / f"documents.{kind}")], spec)) for kind in ("pkl", "jsonl")
    )
    assert one.passage_ids.tolist() == other.passage_ids.tolist() and len(one) == 3


def test_the_pickle_of_faire_has_1757_distinct_passages(spec) -> None:
    if not FAIRE.is_dir():
        pytest.skip("../shared/data/faire is not there")
    corpus = Corpus.from_tables(read("corpus", [str(FAIRE / "documents.pkl")], spec))
    assert len(corpus) == 1757


def lines_of(path: Path, count: int) -> list[str]:
    return [json.dumps(doc(f"text {number}", f"s{number}")) + "\n" for number in range(count)]


def test_a_large_file_is_read_in_ranges_to_the_rows_of_one_reading(spec, tmp_path, monkeypatch) -> None:
    from rqa_ray.data import readers

    path = write(tmp_path / "train.jsonl", [{**RECORDS[number % 2], "n": number} for number in range(50)])
    whole = TrainingRows.from_tables(read("train", [path], spec))
    monkeypatch.setattr(readers, "RANGE_BYTES", 3000)
    assert len(readers.record_ranges(path, 3000)) > 3
    ranges = TrainingRows.from_tables(read("train", [path], spec))
    assert len(ranges) == len(whole) == 125
    assert ranges.passage_ids.tolist() == whole.passage_ids.tolist()
    for name in ("ids", "offsets"):
        assert getattr(ranges.negatives, name).tolist() == getattr(whole.negatives, name).tolist()
    assert all(one.tolist() == other.tolist() for one, other in zip(ranges.questions, whole.questions, strict=True))


def test_bad_records_are_left_out_counted_by_kind_and_the_first_are_listed(spec, tmp_path, monkeypatch) -> None:
    from rqa_ray.data import readers
    from rqa_ray.data.readers import read_inputs

    lines = lines_of(tmp_path, 60)
    lines[3] = "oops\n"
    lines[40] = '{"a": 1}\n'
    lines[50:] = ["[]\n"] * 30 + lines[50:]
    (tmp_path / "documents.jsonl").write_text("".join(lines))
    monkeypatch.setattr(readers, "RANGE_BYTES", 1500)
    blocks = read_inputs({"corpus": [str(tmp_path / "documents.jsonl")]}, spec, skip_bad=True)["corpus"]
    assert len(Corpus.from_tables(blocks.tables())) == 58
    skipped = blocks.skipped
    assert skipped.kinds == {"not JSON": 1, "a document needs `page_content`": 1, "a document has to be an object": 30}
    assert skipped.counts().startswith("a document has to be an object 30, ")  # the most frequent first
    assert len(skipped.first) == 20
    assert [line.split(": ")[0].rsplit(":")[-1] for line in skipped.first[:3]] == ["4", "41", "51"]
    with pytest.raises(InputError, match=r"documents.jsonl:4: not JSON"):
        read("corpus", [str(tmp_path / "documents.jsonl")], spec)


def test_a_file_without_a_right_record_is_refused_though_bad_ones_are_skipped(spec, tmp_path) -> None:
    from rqa_ray.data.readers import read_inputs

    (tmp_path / "documents.jsonl").write_text("[]\n" * 600)
    with pytest.raises(InputError, match=r"documents.jsonl: all its 600 records are bad; the first: .*:1: a document"):
        read_inputs({"corpus": [str(tmp_path / "documents.jsonl")]}, spec, skip_bad=True)


def test_a_passage_with_another_embedded_text_is_refused_or_the_first_is_taken_and_counted(spec, tmp_path) -> None:
    from rqa_ray.data.readers import read_inputs

    titled = {"page_content": "alpha", "metadata": {"source": "a", "title": "T"}}
    asked = {"question": "?", "gold_docs": [titled]}
    inputs = {
        "train": [write(tmp_path / "1.jsonl", RECORDS), write(tmp_path / "2.jsonl", [asked])],
        "corpus": [write(tmp_path / "d.jsonl", [doc("alpha", "a"), titled, titled])],
    }
    places = {
        "train": r"2\.jsonl:1: the same passage as in .*1\.jsonl:1 ",
        "corpus": r"d\.jsonl:2: the same passage as in .*jsonl:1 ",
    }
    for name, place in places.items():
        with pytest.raises(InputError, match=place + ".*'Source: a.nTitle: T.*, or pass --on_bad_record skip"):
            read(name, inputs[name], spec)
    blocks = read_inputs(inputs, spec, skip_bad=True)
    assert [list(blocks[name].skipped.kinds.values()) for name in inputs] == [[1], [1]]
    rows, corpus = TrainingRows.from_tables(blocks["train"].tables()), Corpus.from_tables(blocks["corpus"].tables())
    assert len(corpus) == 1 and rows.passages[5].tolist() == rows.passages[0].tolist() == corpus.tokens[0].tolist()
