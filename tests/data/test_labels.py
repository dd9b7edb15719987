"""Accepted labels: a passage that a person accepted is a gold wherever its question is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rqa_ray.data.counts import Counts
from rqa_ray.data.labels import Labels
from rqa_ray.data.records import find_labels, read_records
from rqa_ray.data.rows import Questions, TrainingRows
from rqa_ray.data.schema import Document, Label, QARecord, question_key
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings

GOLD, RIVAL, OTHER = (Document(f"text {number}", "", {"source": f"s{number}"}) for number in range(3))
RECORD = QARecord(
    ["one", "two", "TWO ", "three"],
    [GOLD],
    [RIVAL],
    hard_neg_scores=[0.5],
    gold_scores=[2.0],
    gold_grades=[3.0],
    num_empty_questions=1,
)


def label(question: str, passage: Document, accept: bool | None) -> dict:
    return {"id": "x", "question": question, "score": 0.5, "rival": passage.to_dict(), "accept": accept}


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_only_the_questions_of_that_wording_get_the_gold_and_all_stay_in_their_order() -> None:
    labels = Labels.of([Label("Two", RIVAL, True), Label("three", GOLD, True), Label("one", OTHER, False)])
    parts = list(labels.apply(RECORD))
    assert [(part.questions, part.gold_docs) for part in parts] == [
        (["one"], [GOLD]),
        (["two", "TWO "], [GOLD, RIVAL]),
        (["three"], [GOLD]),  # which has it already
    ]
    assert [part.gold_scores for part in parts] == [[2.0], [2.0, None], [2.0]]
    assert [part.gold_grades for part in parts] == [[3.0], [3.0, 1.0], [3.0]]
    assert labels.refused == {(question_key("ONE"), OTHER.passage_id)}
    assert [part.first_question for part in parts] == [0, 1, 3]
    assert sum(part.num_empty_questions for part in parts) == 1
    counts = Counts()
    for part in parts:
        counts.add(part)
    assert (counts.num_rows, counts.num_questions, counts.num_negatives) == (6, 4, 1)
    assert all(part.hard_neg_docs == [RIVAL] and part.hard_neg_scores == [0.5] for part in parts)


def test_a_decision_is_about_the_question_with_its_instruction() -> None:
    labels = Labels.of([Label("one", RIVAL, True, "Find: "), Label("one", RIVAL, False)])
    for instruction, golds in (("Find: ", [GOLD, RIVAL]), ("Rank: ", [GOLD]), (None, [GOLD])):
        record = QARecord(["one"], [GOLD], [], instruction=instruction)
        (part,) = labels.apply(record)
        assert part.gold_docs == golds and part.instruction == instruction
        assert bool(labels.keys_in(record)) is (len(golds) > 1)


def test_a_record_without_such_a_question_is_left_as_it_is() -> None:
    for labels in (Labels(), Labels.of([Label("four", RIVAL, True)]), Labels.of([Label("one", RIVAL, None)])):
        assert list(labels.apply(RECORD)) == [RECORD]


def test_the_user_is_told_what_became_of_the_decisions(tmp_path) -> None:
    lines = [label("one", RIVAL, True), label("ONE", OTHER, True), label("two", RIVAL, True)]
    lines += [label("What?", OTHER, True), label("three", OTHER, False), label("three", RIVAL, None)]
    labels = find_labels([write(tmp_path / "a.jsonl", lines[:3]), write(tmp_path / "b.jsonl", lines[3:])])
    assert labels.describe(map(question_key, RECORD.questions)) == [
        "accepted labels: 2 passages are golds of 2 questions now (1 refused, 1 undecided); "
        "1 of their questions are asked in no file, such as 'What?'"
    ]
    assert find_labels(None).describe([]) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"accept": "yes"}, "`accept` has to be true, false or null, found a string"),
        ({"accept": 1}, "`accept` has to be true, false or null, found 1"),
        ({"question": " "}, "`question` has to be a string with a question, found a string"),
        ({"rival": "text"}, "a document has to be an object, found a string"),
        ({"rival": {"title": "T"}}, "a document needs `page_content` .*, found keys `title`"),
    ],
)
def test_a_bad_line_is_named(tmp_path, changes, problem) -> None:
    path = write(tmp_path / "labels.jsonl", [label("one", RIVAL, None), label("one", RIVAL, True) | changes])
    with pytest.raises(InputError, match=f"^{path}:2: {problem}"):
        find_labels([path])


def test_another_kind_of_file_and_two_opposite_decisions_are_refused(tmp_path) -> None:
    path = write(tmp_path / "questions.jsonl", [{"questions": ["one"], "gold_docs": [GOLD.to_dict()]}])
    with pytest.raises(InputError, match="questions.jsonl:1: a label needs `question` and `rival` "):
        find_labels([path])
    with pytest.raises(InputError, match="^--accepted_labels nowhere.jsonl: no such file"):
        find_labels(["nowhere.jsonl"])
    path = write(tmp_path / "labels.jsonl", [label("one", RIVAL, True), label(" One", RIVAL, False)])
    with pytest.raises(InputError, match="for the question ' ?One' and another refuses it, 'text 1'; keep one"):
        find_labels([path])


def test_every_way_to_read_the_questions_gives_the_golds(ray_cluster, tiny_model, tmp_path, monkeypatch) -> None:
    from rqa_ray.data import streaming
    from rqa_ray.data.prepare import write as write_parquet
    from rqa_ray.data.readers import read_inputs

    spec = ModelSpec(tiny_model, read_settings(tiny_model, max_seq_length=16))
    records = [
        {"questions": [f"q{number}", f"other {number}", ""], "gold_docs": [document(number)], "hard_neg_docs": []}
        for number in range(40)
    ]
    records.append({"question": "Q3", "gold_docs": [document(77)]})
    files = [write(tmp_path / "train.jsonl", records)]
    labels = Labels.of(Label(f"q{number}", Document(**document(number + 1)), True) for number in range(3, 99, 9))
    found = {}
    for name, paths, given in (("files", files, labels), ("none", files, Labels())):
        blocks = read_inputs({"train": paths, "eval": paths}, spec, labels=given)
        rows = TrainingRows.from_tables(blocks["train"].tables())
        questions = Questions.from_tables(blocks["eval"].tables())
        found[name] = pairs_of(rows), sorted(tuple(golds) for golds in questions.golds), len(questions)
    assert len(found["none"][0]) == 81 and len(found["files"][0]) == 81 + 5 + 1  # q3 is asked twice
    assert found["files"][2] == found["none"][2] == 81
    assert max(len(golds) for golds in found["files"][1]) == 3 > max(len(golds) for golds in found["none"][1])

    corpus = [document(number) | {"id": number} for number in range(99)]
    for record in records:  # the same with the ids of the golds
        number = int(record.pop("gold_docs")[0]["page_content"].split()[1])
        record["gold_ids"] = [str(number)]
    inputs = {"train": [write(tmp_path / "ids.jsonl", records)], "corpus": [write(tmp_path / "corpus.jsonl", corpus)]}
    by_ids = replace(labels, passages=find_labels(None, inputs).passages)
    blocks = read_inputs({"train": inputs["train"]}, spec, labels=by_ids)
    assert pairs_of(TrainingRows.from_tables(blocks["train"].tables())) == found["files"][0]

    write_parquet(files, "questions", tmp_path / "train.parquet", skip_bad=False, labels=labels)
    for given in (Labels(), labels):  # whoever names the labels again gets nothing twice
        blocks = read_inputs({"train": [str(tmp_path / "train.parquet")]}, spec, labels=given)
        assert pairs_of(TrainingRows.from_tables(blocks["train"].tables())) == found["files"][0]

    for name, size in {"PART_BYTES": 600, "SMALLEST_PART": 600, "WINDOW_BYTES": 10**6}.items():
        monkeypatch.setattr(streaming, name, size)
    for paths, given in ((files, labels), (inputs["train"], by_ids)):
        streamed_pairs_are(found["files"][0], paths, given, spec)


def streamed_pairs_are(expected: list[tuple], files: list[str], labels: Labels, spec: ModelSpec) -> None:
    from rqa_ray.data import streaming
    from rqa_ray.data.windows import WindowedRows

    stream = streaming.open_stream(files, spec, labels=labels)
    assert stream.counts.num_rows == stream.num_rows.sum() == 87 and stream.counts.num_empty == 40
    assert labels.describe(stream.labeled) == labels.describe(map(question_key, (f"q{n}" for n in range(40))))
    plan, store = stream.serve(seed=0, busy_cpus=0)
    rows, numbers = WindowedRows(plan, streaming.fetcher(store)).take(0, 87)
    assert sorted(numbers) == list(range(87)) and sorted(pairs_of(rows)) == sorted(expected)


def document(number: int) -> dict:
    return {"page_content": f"passage {number}", "metadata": {"source": "s"}}


def pairs_of(rows: TrainingRows) -> list[tuple]:
    """(tokens of the question, its passage, all its golds) of each row."""
    triples = zip(rows.questions, rows.passage_ids, rows.golds, strict=True)
    return [(tuple(question), int(gold), tuple(golds)) for question, gold, golds in triples]


def test_a_line_that_a_label_cuts_keeps_its_number(tmp_path) -> None:
    path = write(tmp_path / "train.jsonl", [{"questions": ["one", "two"], "gold_docs": [GOLD.to_dict()]}] * 2)
    labels = Labels.of([Label("two", RIVAL, True)])
    assert [line for line, _ in read_records(path, "questions", labels=labels)] == [1, 1, 2, 2]
