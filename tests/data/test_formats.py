"""Each form of record becomes questions and passages; other records get a clear message."""

import datetime
import json
import os
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.formats import FORMATS, Format, RecordError, parse_document, parse_json, parse_label, parse_qa_record
from rqa_ray.data.gold_ids import NamedPassage, PassagesById
from rqa_ray.data.records import good_records
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.schema import Document, QARecord
from rqa_ray.data.token_tables import to_table, train_rows
from rqa_ray.errors import InputError
from rqa_ray.retriever import distributed
from tests.data.test_schema import DOC, DOCUMENTS, METADATA, VALUES
from tests.ranks import run_ranks
from tests.training.invariance import Recorder, make_trainer, weights

# Forms


def test_a_raw_record_keeps_all_but_its_text_as_metadata():
    document = parse_document({"text": "It boils.", "source": "a.txt", "title": "Water", "page": 3})
    assert document == Document("It boils.", "", {"source": "a.txt", "title": "Water", "page": 3})
    assert document.fmt_content == "Source: a.txt\nTitle: Water\nContent:\nIt boils."


@given(st.text(), METADATA)
def test_the_raw_form_is_the_same_passage_as_the_full_form(text, metadata):
    metadata = {key: value for key, value in metadata.items() if key not in ("text", "page_content")}
    full = {"page_content": text, "fmt_content": "", "metadata": metadata}
    assert parse_document({"text": text, **metadata}) == parse_document(full)


@pytest.mark.parametrize("missing", [{}, {"metadata": None, "fmt_content": None}])
def test_a_document_needs_no_more_than_its_content(missing):
    assert parse_document({"page_content": "text", **missing}) == Document("text", "Content:\ntext", {})


def test_the_flat_form_is_a_record_of_one_question():
    flat = {"question": "Boils?", "gold_docs": [DOC], "gold_answer": "yes", "chat_history": []}
    assert parse_qa_record(flat) == parse_qa_record({"questions": ["Boils?"], "gold_docs": [DOC]})


@settings(max_examples=30)
@given(
    st.lists(st.text(min_size=1), min_size=1, max_size=3),
    st.lists(DOCUMENTS, min_size=1, max_size=2),
    st.lists(DOCUMENTS, max_size=2),
)
def test_a_record_gives_its_documents_and_the_questions_that_are_not_blank(questions, golds, negatives):
    value = {
        "questions": questions,
        "gold_docs": [document.to_dict() for document in golds],
        "hard_neg_docs": [document.to_dict() for document in negatives],
    }
    record = parse_qa_record(parse_json(json.dumps(value)))
    assert record.questions == [question for question in questions if question.strip()]
    assert record.num_empty_questions == len(questions) - len(record.questions)
    assert (record.gold_docs, record.hard_neg_docs) == (golds, negatives)


@pytest.mark.parametrize("missing", [{}, {"hard_neg_docs": None}, {"hard_neg_docs": []}])
def test_hard_negatives_may_be_missing(missing):
    assert parse_qa_record({"question": "Boils?", "gold_docs": [DOC], **missing}).hard_neg_docs == []


@pytest.mark.parametrize(("history", "has"), [(None, False), ([], False), (["before"], True)])
def test_a_chat_history_that_is_not_empty_is_noticed(history, has):
    assert parse_qa_record({"question": "?", "gold_docs": [DOC], "chat_history": history}).has_chat_history is has


@pytest.mark.parametrize(("value", "instruction"), [(None, None), ("", ""), ("Find: ", "Find: "), ("\ud800", "?")])
def test_an_instruction_may_be_missing_and_is_kept_with_its_blanks(value, instruction):
    for asked in ({"question": "Boils?"}, {"questions": ["Boils?"]}):
        assert parse_qa_record({**asked, "gold_docs": [DOC], "instruction": value}).instruction == instruction
    assert parse_label({"question": "Boils?", "rival": DOC, "instruction": value}).instruction == instruction


@pytest.mark.parametrize(("value", "found"), [(["Find: "], "a list"), (1, "1"), ({}, "an object")])
def test_an_instruction_that_is_no_text_is_named_by_file_and_line(tmp_path, value, found):
    path = tmp_path / "train.jsonl"
    lines = [{"question": "Boils?", "gold_docs": [DOC]}, {"question": "?", "gold_docs": [DOC], "instruction": value}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError) as caught:
        list(good_records([str(path)], "questions"))
    assert str(caught.value) == f"{path}:2: `instruction` has to be a string, found {found}"


# Forms of other projects

LOCAL = {
    "question": "Boils?",
    "gold_docs": [{"text": "Water boils."}],
    "hard_neg_docs": [{"text": "Ice melts."}, {"text": "Iron rusts."}],
}
OTHERS = {
    "sentence-transformers": {
        "anchor": "Boils?",
        "positive": "Water boils.",
        "negative_2": "Iron rusts.",
        "negative_1": "Ice melts.",
        "negative_3": None,
    },
    "sentence-transformers, query": {
        "query": "Boils?",
        "positive": "Water boils.",
        "negative": "Ice melts.",
        "negative_10": "Iron rusts.",
    },
    "FlagEmbedding": {"query": "Boils?", "pos": ["Water boils."], "neg": ["Ice melts.", "Iron rusts."], "id": 3},
    "Tevatron": {
        "query_id": "1",
        "query": "Boils?",
        "positive_passages": [{"text": "Water boils."}],
        "negative_passages": [{"text": "Ice melts."}, {"text": "Iron rusts."}],
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_record_of_another_project_is_the_record_that_localrqa_would_have(name):
    assert parse_qa_record(OTHERS[name]) == parse_qa_record(LOCAL)


NAMED = {"question": "Boils?", "gold_ids": ["it boils"], "hard_neg_ids": [7, "8"]}


@pytest.mark.parametrize("name", [*OTHERS, "ids in the corpus"])
def test_the_same_pairs_in_each_form_are_the_same_global_batches(name):
    texts = {f"it boils {number}": f"Water boils {number}." for number in range(9)}
    corpus = {"7": "Ice melts.", "8": "Iron rusts."} | texts
    passages = PassagesById.of("c", (NamedPassage(*one, "c", 1) for one in _documents(corpus)))

    def batch(form: str) -> list[list[int]]:
        line = json.dumps(OTHERS.get(form, LOCAL if form == "LocalRQA" else NAMED))
        values = [parse_json(line.replace("oils", f"oils {number}")) for number in range(9)]
        records = list(enumerate(passages.resolve(parse_qa_record(value)) for value in values))
        rows = [row | {"file": 0} for row in train_rows(records, Words(), set())]  # type: ignore[arg-type]
        data = TrainingRows.from_tables([to_table(rows, "train")])
        found = GlobalBatches(data, 4, 0.5, seed=0, pad_id=0, rank=0, world_size=1).make(1)
        return [np.asarray(part).tolist() for part in (found.order, found.passage_ids)]

    assert batch(name) == batch("LocalRQA")


def _documents(texts: dict[str, str]) -> list[tuple[str, Document]]:
    return [(name, Document(text)) for name, text in texts.items()]


def stored(value: Any, text: pa.DataType, texts: pa.DataType) -> pa.DataType:
    """Returns the type of a column with such values, in which a text is of type `text` and a list has type `texts`."""
    if isinstance(value, list):
        inner = value[0]
        fields = [("docid", pa.int64()), ("title", text), ("text", text)]
        return pa.list_(pa.struct(fields)) if isinstance(inner, dict) else texts
    return pa.int64() if isinstance(value, int) else text


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        (pa.string(), pa.list_(pa.string())),
        (pa.large_string(), pa.large_list(pa.large_string())),
        (pa.binary(), pa.list_(pa.binary())),
        (pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ],
    ids=["strings", "large strings", "bytes", "dictionaries"],
)
@pytest.mark.parametrize("name", ["LocalRQA", *OTHERS])
def test_parquet_holds_each_form_in_columns_of_any_type_of_text(tmp_path, name, text, texts):
    value = OTHERS.get(name, LOCAL)
    optional = {key: item for key, item in value.items() if key.startswith(("neg", "hard_neg", "query_id", "id"))}
    rows = [value, {key: item for key, item in value.items() if key not in optional}, value]
    columns = {key: pa.array([row.get(key) for row in rows], stored(item, text, texts)) for key, item in value.items()}
    path = str(tmp_path / "train.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=2)
    records = list(good_records([path], "questions"))
    assert records == [parse_qa_record(row) for row in rows]
    assert not records[1].hard_neg_docs and len(records[2].hard_neg_docs) == 2


def test_a_record_of_localrqa_may_have_a_field_named_positive():
    assert parse_qa_record(LOCAL | {"positive": True}) == parse_qa_record(LOCAL)


def test_scores_and_the_prompt_of_flag_embedding_are_a_teachers_scores_and_an_instruction():
    scores = {"pos_scores": [0.9], "neg_scores": [0.5, 0.1], "prompt": "Find: "}
    record = parse_qa_record(OTHERS["FlagEmbedding"] | scores)
    assert (record.gold_scores, record.hard_neg_scores) == ([0.9], [0.5, 0.1])
    assert record.instruction == "Find: "


@pytest.mark.parametrize("name", OTHERS)
def test_each_form_reads_an_instruction_and_grades(name):
    record = parse_qa_record(OTHERS[name] | {"instruction": "Find: ", "gold_grades": [2]})
    assert (record.instruction, record.gold_grades) == ("Find: ", [2])


def test_a_row_of_sentence_transformers_may_have_a_list_of_negatives_and_scores_of_a_teacher():
    row = {"query": "?", "positive": "a", "negatives": ["b", "c"], "hard_neg_scores": [0.5, 0.1], "gold_scores": [1]}
    record = parse_qa_record(row)
    assert [document.page_content for document in record.hard_neg_docs] == ["b", "c"]
    assert (record.hard_neg_scores, record.gold_scores) == ([0.5, 0.1], [1])


def test_a_record_with_passages_of_tevatron_is_one_whatever_other_fields_it_has():
    assert parse_qa_record(OTHERS["Tevatron"] | {"positive": True}) == parse_qa_record(LOCAL)


def test_the_docid_and_title_of_tevatron_stay_with_a_passage():
    passage = {"docid": 7, "title": "Water", "text": "It boils."}
    [gold] = parse_qa_record({"query": "?", "positive_passages": [passage]}).gold_docs
    assert gold == parse_document(passage) and gold.fmt_content == "Title: Water\nContent:\nIt boils."


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"anchor": "?", "positive": ["a"]}, "`positive` has to be text, found a list"),
        ({"anchor": "?", "positive": None}, "`positive` has to be text, found null"),
        ({"query": "?", "positive": "a", "negative": 3}, "`negative` has to be text, found 3"),
        ({"query": "?", "pos": []}, "`pos` has to be a list with at least one passage, found an empty list"),
        ({"query": "?", "pos": "a"}, "`pos` has to be a list with at least one passage, found a string"),
        ({"query": "?", "pos": ["a"], "neg": [{}]}, "`neg` has to be text, found an object"),
        ({"query": "?", "pos": ["a"], "pos_scores": []}, "`pos_scores` has 0 scores for 1 `pos`"),
        ({"query": "?", "pos": ["a"], "neg_scores": [1]}, "`neg_scores` has 1 scores for 0 `neg`"),
        ({"query": "?", "pos": ["a"], "prompt": 3}, "`prompt` has to be a string, found 3"),
        ({"query": None, "pos": ["a"]}, "`query` has to be text, found null"),
        ({"anchor": 3, "positive": "a"}, "`anchor` has to be text, found 3"),
        (
            {"query": "?", "positive_passages": [DOC], "negative_passages": DOC},
            "`negative_passages` has to be a list, found an object",
        ),
        ({"anchor": "?", "positive": " "}, "`positive` has an empty text"),
        (
            {"query": "?", "pos": ["a"], "neg": ["b"], "neg_scores": [1e39]},
            "`neg_scores` has a number that is not finite in fp32",
        ),
        (
            {"query": "?", "positive_passages": None},
            "`positive_passages` has to be a list with at least one passage, found null",
        ),
    ],
)
def test_a_wrong_record_of_another_project_is_described_by_its_own_names(value, message):
    with pytest.raises(RecordError) as caught:
        parse_qa_record(value)
    assert str(caught.value) == message


# Missing values, and what is no text


def test_nan_is_a_missing_value_wherever_it_stands():
    line = '{"text": "It boils.", "source": NaN, "title": NaN, "more": {"pages": [1, NaN], "price": NaN}}'
    document = parse_document(parse_json(line))
    assert document.fmt_content == "Content:\nIt boils."
    assert document.passage_id == Document("It boils.").passage_id
    assert json.loads(json.dumps(document.to_dict(), allow_nan=False))["metadata"]["more"] == {
        "pages": [1, None],
        "price": None,
    }
    assert parse_document({"text": "It boils.", "source": float("nan")}).fmt_content == "Content:\nIt boils."


def test_a_teachers_scores_stay_with_their_hard_negatives():
    value = {"question": "?", "gold_docs": [DOC], "hard_neg_docs": [DOC, DOC], "hard_neg_scores": [0.5, 2]}
    assert parse_qa_record(value).hard_neg_scores == [0.5, 2]
    assert parse_qa_record({"question": "?", "gold_docs": [DOC]}).hard_neg_scores is None
    assert parse_qa_record(value | {"gold_scores": [None]}).gold_scores == [None]


@pytest.mark.parametrize(("grades", "kept"), [([3, 0.5], [3, 0.5]), ([1, 1], None), (None, None)])
def test_a_record_may_have_the_grades_of_its_golds_which_else_are_1(grades, kept):
    record = parse_qa_record({"question": "?", "gold_docs": [DOC, DOC], "gold_grades": grades})
    assert record.gold_grades == kept and record.grades == (kept or [1, 1])


# What is wrong

NEEDS_TEXT = "a document needs `page_content` (LocalRQA) or `text` (raw), "
NEEDS_QUESTIONS = (
    "a record needs `questions` (LocalRQA) or `query` and `pos` (FlagEmbedding) or `query` and `positive_passages` "
    "(Tevatron) or `anchor` and `positive` (sentence-transformers) or `query` and `positive` (sentence-transformers) "
    "or `question` and `positive` (sentence-transformers) or `question` (LocalRQA, flat), "
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a document has to be an object, found 3"),
        (None, "a document has to be an object, found null"),
        ("text", "a document has to be an object, found a string"),
        ({}, NEEDS_TEXT + "found keys none"),
        (
            {"content": "x", "url": "y"},
            NEEDS_TEXT + "found keys `content`, `url`",
        ),
        ({"con\ntent": "x"}, NEEDS_TEXT + "found keys `con tent`"),
        ({"page_content": None}, "`page_content` has to be a string, found null"),
        ({"page_content": "x", "fmt_content": ["y"]}, "`fmt_content` has to be a string, found a list"),
        (
            {"page_content": "x", "metadata": "y"},
            "`metadata` has to be an object, or a string with a JSON object, found 'y'",
        ),
        ({"text": {"a": 1}}, "`page_content` has to be a string, found an object"),
        ({"text": datetime.date(2026, 1, 2)}, "`page_content` has to be a string, found datetime.date(2026, 1, 2)"),
        ({"text": "x", "title": ["a"]}, "`title` has to be text or a number, found a list"),
        ({"page_content": "x", "metadata": {"source": {}}}, "`source` has to be text or a number, found an object"),
        (
            {"text": "x", "prices": {datetime.date(2026, 1, 2): 5}},
            "`metadata` has to be JSON (keys must be str, int, float, bool or None, not datetime.date)",
        ),
        ({"text": "x", "shape": 1j}, "`metadata` has to be JSON, found a value of type complex"),
        (
            {"text": "x", "a": float("inf")},
            "not JSON (Infinity is no JSON number), found '{\"a\": Infinity}'",
        ),
    ],
)
def test_a_wrong_document_is_described_by_what_was_found(value, message):
    with pytest.raises(RecordError) as error:
        parse_document(value)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a record has to be an object, found an empty list"),
        (True, "a record has to be an object, found a boolean"),
        (
            {"query": "x", "golds": []},
            NEEDS_QUESTIONS + "found keys `query`, `golds`",
        ),
        ({"questions": "x"}, "`questions` has to be a list of strings, found a string"),
        ({"questions": ["x", None]}, "`questions` has to be a list of strings, found null"),
        ({"question": 3.5}, "`questions` has to be a list of strings, found 3.5"),
        ({"questions": []}, "`questions` is empty"),
        ({"questions": ["x"], "docs": []}, "no `gold_docs`, found keys `questions`, `docs`"),
        (
            {"questions": ["x"], "gold_docs": []},
            "`gold_docs` has to be a list with at least one document, found an empty list",
        ),
        (
            {"questions": ["x"], "gold_docs": DOC},
            "`gold_docs` has to be a list with at least one document, found an object",
        ),
        ({"questions": ["x"], "gold_docs": [3]}, "a document has to be an object, found 3"),
        (
            {"questions": ["x"], "gold_docs": [DOC], "hard_neg_docs": DOC},
            "`hard_neg_docs` has to be a list, found an object",
        ),
        (
            {"questions": ["x"], "gold_docs": [DOC], "hard_neg_docs": [DOC], "hard_neg_scores": [0.5, 1]},
            "`hard_neg_scores` has 2 scores for 1 `hard_neg_docs`",
        ),
        (
            {"questions": ["x"], "gold_docs": [DOC], "hard_neg_docs": [DOC], "hard_neg_scores": ["y"]},
            "`hard_neg_scores` has to be a list of numbers, found a list",
        ),
        (
            {"questions": ["x"], "gold_docs": [DOC], "hard_neg_docs": ["y"]},
            "a document has to be an object, found a string",
        ),
    ],
)
def test_a_wrong_record_is_described_by_what_was_found(value, message):
    with pytest.raises(RecordError) as error:
        parse_qa_record(value)
    assert str(error.value) == message


@pytest.mark.parametrize("line", ["", "{", "{'a': 1}", '{"a": 1} x\n', "9" * 5000, "[" * 100_000])
def test_a_line_that_is_not_json_is_quoted_in_one_line(line):
    with pytest.raises(RecordError, match="^not JSON .*found ") as error:
        parse_json(line)
    assert repr(line.strip()[:60]) in str(error.value)
    assert len(str(error.value)) < 300


@given(
    VALUES | st.dictionaries(st.sampled_from(["questions", "gold_docs", "page_content", "text", "metadata"]), VALUES)
)
def test_any_json_value_is_parsed_or_refused_in_one_short_line(value):
    for parse in (parse_document, parse_qa_record):
        try:
            parse(value)
        except RecordError as error:
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < 500


@given(st.text())
def test_any_line_is_json_or_refused_in_one_line(line):
    try:
        parse_json(line)
    except RecordError as error:
        assert len(str(error).splitlines()) == 1


# A form that the package does not know


def claim(value: dict[str, Any]) -> QARecord:
    """Reads `{"claim", "supports", "refutes"}`, whose passages are plain texts."""
    golds, negatives = ([Document(text, text) for text in value.get(name, [])] for name in ("supports", "refutes"))
    return QARecord([value["claim"]], golds, negatives)


class Words:
    """Stands for a tokenizer: each word is one token."""

    def questions(self, texts: list[str], instructions: list[str | None]) -> list[np.ndarray]:
        return self.passages(texts)

    def passages(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([5 + zlib.crc32(word.encode()) % 90 for word in text.split()], np.int32) for text in texts]


def two_steps_on(folder: str) -> tuple[list[float], torch.Tensor, int]:
    """Makes two SGD steps on `folder`/train.jsonl on this rank.

    Returns losses, weights and the number of hard negatives.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
    FORMATS["questions"].append(Format("claims", ("claim", "supports"), claim))
    records = list(enumerate(good_records([f"{folder}/train.jsonl"], "questions")))
    rows = [row | {"file": 0} for row in train_rows(records, Words(), set())]  # type: ignore[arg-type]
    trainer = make_trainer(f"{folder}", 0.5, False, rank, ranks, Recorder(), max_steps=2)
    training = TrainingRows.from_tables([to_table(rows, "train")])
    trainer.batches = GlobalBatches(training, 8, 0.5, seed=0, pad_id=0, rank=rank, world_size=ranks)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, weights(trainer.model), len(trainer.batches.draw_negatives(0))


def test_a_form_that_one_entry_adds_trains_the_same_on_1_and_2_processes(tmp_path):
    lines = [
        {"claim": f"it is {n}", "supports": [f"text {n}"], "refutes": [f"text {n + 1}", f"no {n}"]} for n in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"train.jsonl:1: a record needs .*, found keys `claim`, `supports`"):
        next(good_records([str(tmp_path / "train.jsonl")], "questions"))
    [(losses, trained, num_negatives)] = run_ranks(1, two_steps_on, tmp_path, str(tmp_path))
    (losses_of_two, trained_by_two, _), _ = run_ranks(2, two_steps_on, tmp_path, str(tmp_path))
    assert len(losses) == 2 and num_negatives == 4
    assert losses == pytest.approx(losses_of_two, rel=1e-5)
    start = weights(make_trainer(str(tmp_path), 0.5, False, 0, 1, Recorder()).model)
    moved = (trained - start).norm()
    assert moved > 0.01 and (trained - trained_by_two).norm() < 1e-3 * moved
