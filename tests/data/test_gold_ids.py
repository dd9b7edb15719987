"""Questions may name their golds by the ids of a corpus, whatever type the ids have."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqa_ray.data.counts import Sample, record_bytes
from rqa_ray.data.formats import RecordError, parse_qa_record
from rqa_ray.data.labels import Labels
from rqa_ray.data.records import find_inputs, find_labels, good_records
from rqa_ray.data.schema import Document, QARecord
from rqa_ray.errors import InputError

UUID = "4f6c1a54-0d5f-4a7b-9f0e-5a4c1d2b3e4f"
CORPUS = [
    {"id": 7, "text": "It boils.", "title": "Water"},
    {"_id": UUID, "text": "It freezes."},
    {"doc_id": "a b", "text": "It melts."},
    {"docid": 2**40, "page_content": "It rusts.", "metadata": {"source": "iron"}},
    {"page_content": "It burns.", "metadata": {"id": "7b", "_id": "other"}},
    {"text": "It has no id."},
]
NAMES = [7, UUID, "a b", 2**40, "7b"]


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(questions: str, corpus: str, skip_bad: bool = False) -> list[QARecord]:
    """Returns the records of a file of questions as a job reads them."""
    given = {"train": ("train_file", [questions]), "corpus": ("full_dataset_file_path", [corpus])}
    labels = find_labels(None, find_inputs(given, skip_bad), skip_bad)
    return list(good_records([questions], "questions", skip_bad, labels))


@pytest.fixture
def corpus(tmp_path) -> str:
    return lines(tmp_path / "documents.jsonl", CORPUS)


def test_a_record_with_ids_is_the_record_with_the_passages_of_the_corpus(tmp_path, corpus):
    named = [{"question": f"{name}?", "gold_ids": [name], "hard_neg_ids": [UUID, "a b"]} for name in NAMES]
    documents = list(good_records([corpus], "documents"))
    whole = [QARecord([f"{name}?"], [gold], documents[1:3]) for name, gold in zip(NAMES, documents[:-1], strict=True)]
    assert read(lines(tmp_path / "train.jsonl", named), corpus) == whole


@pytest.mark.parametrize("ids", [[7], ["7"], [7.0], 7, "7"])
def test_ids_are_compared_by_their_text(tmp_path, corpus, ids):
    [record] = read(lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": ids}]), corpus)
    assert [gold.page_content for gold in record.gold_docs] == ["It boils."]


@pytest.mark.parametrize(("cells", "number"), [("7", 1), ('"[7, ""a b""]"', 2)])
def test_a_cell_of_a_table_has_one_id_or_a_list_as_json(tmp_path, corpus, cells, number):
    path = tmp_path / "train.csv"
    path.write_text(f"question,gold_ids\nWhat?,{cells}\n")
    assert [len(record.gold_docs) for record in read(str(path), corpus)] == [number]


@pytest.mark.parametrize(
    "column", [pa.array([[7], [8]]), pa.array(["7", "8"]), pa.array([7, 8]), pa.array([7.0, 8.0])], ids=str
)
def test_parquet_holds_ids_of_each_type(tmp_path, column):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"question": ["one", "two"], "gold_ids": column}), path)
    passages = lines(tmp_path / "documents.jsonl", [{"id": name, "text": f"text {name}"} for name in (8, 7)])
    assert [record.gold_docs[0].page_content for record in read(str(path), passages)] == ["text 7", "text 8"]


def test_a_corpus_in_parquet_may_have_ids_of_the_type_uuid(tmp_path):
    ids = pa.array([uuid.UUID(UUID).bytes], pa.binary(16)).cast(pa.uuid())
    pq.write_table(pa.table({"id": ids, "text": ["It freezes."]}), tmp_path / "corpus.parquet")
    questions = lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": [UUID]}])
    [record] = read(questions, str(tmp_path / "corpus.parquet"))
    assert record.gold_docs == [Document("It freezes.", "", {"id": UUID})]


def test_grades_and_scores_go_with_ids(tmp_path, corpus):
    line = {"questions": ["?"], "gold_ids": [7, "a b"], "gold_grades": [3, 1], "gold_scores": [0.5, None]}
    more = {"hard_neg_ids": [UUID], "hard_neg_scores": [0.1], "instruction": "Find: "}
    [record] = read(lines(tmp_path / "train.jsonl", [line | more]), corpus)
    assert (record.gold_grades, record.gold_scores, record.hard_neg_scores) == ([3, 1], [0.5, None], [0.1])
    assert record.instruction == "Find: "


def test_an_id_of_no_passage_is_named_by_file_and_line_and_may_be_skipped(tmp_path, corpus):
    questions = lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": [name]} for name in (7, "8", 7)])
    with pytest.raises(InputError) as caught:
        read(questions, corpus)
    assert str(caught.value) == f"{questions}:2: `gold_ids` has '8', which is the id of no passage in {corpus}"
    assert len(read(questions, corpus, skip_bad=True)) == 2
    labels = find_labels(None, {"train": [questions], "corpus": [corpus, corpus]})
    assert labels.describe([]) == [f"gold_ids: looked up among the ids of 10 passages in {corpus} and 1 more file"]


def test_one_id_of_two_passages_is_refused_and_of_one_passage_twice_is_not(tmp_path):
    questions = lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": [7]}])
    assert read(questions, lines(tmp_path / "same.jsonl", CORPUS[:1] * 2))
    other = lines(tmp_path / "other.jsonl", [*CORPUS[:2], {"id": "7", "text": "It burns."}])
    with pytest.raises(InputError) as caught:
        read(questions, other)
    assert str(caught.value) == f"{other}:3: another passage than {other}:1, with the same id; give each its own id"


def test_a_corpus_without_ids_is_refused(tmp_path):
    questions = lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": [7]}])
    passages = lines(tmp_path / "documents.jsonl", [{"text": "It boils."}])
    with pytest.raises(
        InputError, match="no passage has an id .`id`, `_id`, `doc_id`, `docid`., but .*train.jsonl has"
    ):
        read(questions, passages)


def test_ids_behind_a_first_record_without_ids_are_refused(tmp_path, corpus):
    records = [{"question": "?", "gold_docs": CORPUS[:1]}, {"question": "?", "gold_ids": [7]}]
    with pytest.raises(InputError, match="train.jsonl:2: `gold_ids`, but the first record of the file has none"):
        read(lines(tmp_path / "train.jsonl", records), corpus)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"gold_ids": []}, "`gold_ids` has to be a list with at least one id, found an empty list"),
        ({"gold_ids": [True]}, "`gold_ids` has to be a list of texts or numbers, found a boolean"),
        ({"gold_ids": ["a", None]}, "`gold_ids` has to be a list of texts or numbers, found null"),
        ({"gold_ids": [["a"]]}, "`gold_ids` has to be a list of texts or numbers, found a list"),
        ({"gold_ids": {"a": 1}}, "`gold_ids` has to be a list of texts or numbers, found an object"),
        ({"gold_ids": [1], "gold_grades": [1, 2]}, "`gold_grades` has 2 scores for 1 `gold_ids`"),
        (
            {"gold_ids": [1], "gold_grades": [0]},
            "`gold_grades` has to be numbers above 0, found 0; a gold is an answer",
        ),
        (
            {"gold_docs": CORPUS[:1], "hard_neg_ids": [1]},
            "`hard_neg_ids` without `gold_ids`; name all passages of a record by their ids, or none",
        ),
    ],
)
def test_what_is_no_list_of_ids_is_described(value, message):
    with pytest.raises(RecordError) as caught:
        parse_qa_record({"question": "?"} | value)
    assert str(caught.value) == message


def test_documents_count_more_than_ids(tmp_path, corpus):
    value = {"question": "?", "gold_docs": CORPUS[:1], "gold_ids": [UUID]}
    assert parse_qa_record(value).gold_docs[0].page_content == "It boils."


def test_the_texts_that_ids_name_count_as_the_size_of_the_data(tmp_path):
    passages = lines(tmp_path / "documents.jsonl", [{"id": 7, "text": "It boils. " * 100}])
    questions = lines(tmp_path / "train.jsonl", [{"question": "?", "gold_ids": [7]}] * 20)
    given = {"train": ("train_file", [questions]), "corpus": ("full_dataset_file_path", [passages])}
    labels = find_labels(None, find_inputs(given, skip_bad=False))
    sample = Sample.of([questions], labels)
    assert 15_000 < record_bytes([questions], sample) < 25_000
    assert Sample.of([questions], Labels()).num_bytes == 0  # nothing is known about the corpus
    assert labels.describe([]) == [f"gold_ids: looked up among the ids of 1 passages in {passages}"]
