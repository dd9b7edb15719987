"""Questions and passages are written as they were read, and predictions can be read again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rqa_ray.data.formats import parse_document, parse_qa_record
from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import LABELS
from rqa_ray.evaluation.predictions import Ranked, read_predictions, read_values, write_predictions
from tests.builders import ASKED, DOCUMENTS, asked_questions, documents

POSITIONS = np.array([[0, 2, 1, 3, 4], [3, 1, 4, 2, 0], [2, 0, 1, 3, 4]])


def test_documents_are_in_document_order_without_duplicates():
    found = documents()
    assert found.passage_ids.tolist() == [document.passage_id for document in DOCUMENTS]
    assert [parse_document(found.document(position)) for position in range(5)] == DOCUMENTS


def test_questions_come_as_they_were_asked_with_the_golds_of_their_wording():
    asked = asked_questions()
    assert asked.questions == list(ASKED)
    golds = [[DOCUMENTS[number].passage_id for number in numbers] for numbers in ([0, 2], [1, 3], [0, 2])]
    assert [sorted(found) for found in asked.gold_ids] == [sorted(ids) for ids in golds]


def test_questions_are_clustered_by_the_documents_of_their_golds():
    assert asked_questions().clusters.labels.tolist() == [0, 1, 0]


VALUES = {metric: np.array([1.0, 0.5, 0.0]) for metric in LABELS.values()}


@pytest.fixture
def written(tmp_path) -> Path:
    """A folder with the predictions of two splits, three passages for each question."""
    scores = np.linspace(1, 0, 5, dtype=np.float32)[None].repeat(3, axis=0)
    ranked = Ranked(asked_questions(), scores, POSITIONS, VALUES)
    write_predictions(tmp_path, {"eval": ranked, "test": ranked}, documents().document, top_k=3)
    return tmp_path


def test_predictions_are_read_again_as_question_records_with_their_golds(written):
    records = [parse_qa_record(record) for record in read_predictions(written, "test")]
    assert [record.questions for record in records] == [[question] for question in ASKED]
    assert records[1].gold_docs == [DOCUMENTS[1], DOCUMENTS[3]] and records[1].gold_grades == [1, 2]
    assert records[0].gold_grades is None
    assert [record.instruction for record in records] == [None, "Find: ", None]


def test_predictions_have_the_best_passages_with_scores_best_first(written):
    retrieved = read_predictions(written, "eval")[1]["retrieved_docs"]
    assert [document["score"] for document in retrieved] == [1, 0.75, 0.5]
    assert [parse_document(document) for document in retrieved] == [DOCUMENTS[number] for number in (3, 1, 4)]


def test_the_text_of_a_passage_is_written_once_for_all_questions_and_splits(written):
    lines = map(json.loads, (written / "predictions-passages.jsonl").read_text().splitlines())
    assert [line["passage_id"] for line in lines] == [DOCUMENTS[place].passage_id for place in (0, 2, 1, 3, 4)]
    assert all("page_content" not in path.read_text() for path in written.glob("*-predictions.jsonl"))


def test_the_metrics_of_each_question_are_read_again(written):
    read = read_values(written, "test", asked_questions())
    assert {name: values.tolist() for name, values in read.items()} == {name: [1, 0.5, 0] for name in VALUES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "another"}, "its predictions are of other questions than --eval_data_path"),
        (
            {"gold_docs": [{"passage_id": 1}]},
            "its questions have other golds than in --eval_data_path; evaluate it again",
        ),
        (
            {"gold_grades": [3, 1]},
            "its questions have other golds than in --eval_data_path; evaluate it again",
        ),
        ({"metrics": {}}, "was not written by this version of jobs/evaluate.py (KeyError('recall@1'))"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(written, change, message):
    path = written / "test-predictions.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | change) + "\n" + "".join(rest))
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        read_values(written, "test", asked_questions())
