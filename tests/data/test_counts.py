"""Training files are counted record by record."""

import json

import numpy as np

from rqa_ray.data.counts import Counts, Sample, estimate
from rqa_ray.data.schema import Document, QARecord

GOLDS = [Document(f"text {number}") for number in range(3)]


def test_rows_are_pairs_of_a_question_and_a_gold():
    records = [
        QARecord(["one", "two"], GOLDS[:2], GOLDS[2:], has_chat_history=True),
        QARecord(["three"], GOLDS[:1], [], num_empty_questions=3),
        QARecord([], GOLDS[2:], GOLDS, num_empty_questions=1),  # all are empty: no row, and no negative of one
    ]
    parts = []
    for record in records:
        parts.append(Counts())
        parts[-1].add(record)
    ids = [gold.passage_id for gold in GOLDS[:2]]
    counts = Counts.of({name: np.array([getattr(part, name) for part in parts]) for name in vars(Counts())})
    assert counts == Counts(5, 3, 4, 4, 1, min(ids), max(ids))
    assert not counts.has_one_gold and parts[1].has_one_gold and not parts[2].has_one_gold


def test_scores_of_a_teacher_are_counted_and_those_that_are_no_cosines():
    counts = Counts()
    for scores in ([0.5, 1.0000001], [-1.2, 7.0], None):
        counts.add(QARecord(["one", "two"], GOLDS[:1], GOLDS[1:], hard_neg_scores=scores))
    assert (counts.num_scored, counts.num_no_cosines) == (4, 2)


def test_a_sample_of_the_first_records_tells_about_how_many_rows_there_are(tmp_path):
    record = {"questions": ["one", "two"], "gold_docs": [{"text": "word " * 50}], "hard_neg_docs": [{"text": "x"}]}
    (tmp_path / "t.jsonl").write_text((json.dumps(record) + "\n") * 3_000)
    sample = Sample.of([str(tmp_path / "t.jsonl")])
    assert len(sample.records) == 500 and sample.counts.num_rows == 1_000
    found = estimate([str(tmp_path / "t.jsonl")])
    assert 0.8 < found.num_rows / 6_000 < 1.3 and found.num_negatives
