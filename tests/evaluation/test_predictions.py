"""Questions and passages are written as they were read, and predictions can be read again."""

import json
from pathlib import Path

import numpy as np

from rqa_ray.data.formats import parse_document, parse_qa_record
from rqa_ray.evaluation.predictions import write_predictions
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


def read_predictions(path: Path) -> list[dict]:
    scores = np.linspace(1, 0, 5, dtype=np.float32)[None].repeat(3, axis=0)
    write_predictions(path, asked_questions(), documents().document, scores, POSITIONS)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_predictions_are_read_again_as_question_records_with_their_golds(tmp_path):
    records = [parse_qa_record(record) for record in read_predictions(tmp_path / "p.jsonl")]
    assert [record.questions for record in records] == [[question] for question in ASKED]
    assert records[1].gold_docs == [DOCUMENTS[1], DOCUMENTS[3]]
    assert [record.instruction for record in records] == [None, "Find: ", None]


def test_predictions_have_the_retrieved_documents_with_scores_best_first(tmp_path):
    retrieved = read_predictions(tmp_path / "p.jsonl")[1]["retrieved_docs"]
    assert [document["score"] for document in retrieved] == [1, 0.75, 0.5, 0.25, 0]
    assert [parse_document(document) for document in retrieved] == [DOCUMENTS[number] for number in (3, 1, 4, 2, 0)]
