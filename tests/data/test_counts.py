"""Training files are counted record by record."""

import json
from pathlib import Path

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


def lines(path: Path, number: int, num_questions: int = 2, words: int = 50) -> str:
    record = {"questions": ["why"] * num_questions, "gold_docs": [{"text": "word " * words}]}
    record["hard_neg_docs"] = [{"text": "x"}]
    path.write_text((json.dumps(record) + "\n") * number)
    return str(path)


def test_a_sample_of_the_first_records_tells_about_how_many_rows_there_are(tmp_path):
    path = lines(tmp_path / "t.jsonl", 3_000)
    sample = Sample.of([path])
    assert len(sample.records) == 500 and sample.of_files[path].counts.num_rows == 1_000
    found = estimate([path])
    assert found.num_rows == 6_000 and found.num_negatives


def test_a_file_that_is_read_to_its_end_has_as_many_rows_as_it_says(tmp_path):
    assert estimate([lines(tmp_path / "t.jsonl", 400)]).num_rows == 800


def test_files_whose_records_differ_are_each_estimated_by_their_own_records(tmp_path):
    paths = [lines(tmp_path / f"{place}.jsonl", 500, 1 + place, 400 // (1 + place)) for place in range(3)]
    assert estimate(paths).num_rows == 500 * (1 + 2 + 3)
    alike = [lines(tmp_path / f"alike-{place}.jsonl", 100 + place) for place in range(20)]
    assert len(Sample.of(alike).of_files) == 8 and Sample.of(alike).of_files.keys() >= {alike[0], alike[-1]}
    assert abs(estimate(alike).num_rows - 2 * sum(range(100, 120))) < 5
