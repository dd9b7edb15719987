"""Records of the data contract: identity, the embedded text, the accepted forms, and what is said of the others."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.schema import (
    Document,
    RecordError,
    format_passage,
    parse_document,
    parse_json,
    parse_qa_record,
    passage_id,
    question_key,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
METADATA = st.dictionaries(st.sampled_from(["source", "title", "page"]) | st.text(max_size=5), VALUES, max_size=3)
DOCUMENTS = st.builds(Document, page_content=st.text(), fmt_content=st.text(), metadata=METADATA)
DOC = {"page_content": "Water boils.", "metadata": {"source": "a.txt"}}


# Identity


def test_a_passage_is_its_source_and_content_whatever_its_title_and_embedded_text():
    first = Document("Water boils.", "embedded", {"source": "a.txt", "title": "Water"})
    assert first.passage_id == Document("Water boils.", "", {"source": "a.txt", "page": 3}).passage_id
    assert first.passage_id != Document("Water boils.", "embedded", {"source": "b.txt"}).passage_id
    assert first.passage_id != Document("Water freezes.", "embedded", {"source": "a.txt"}).passage_id


def test_identity_is_the_same_in_every_process_and_release():
    def signed(b2sum: str) -> int:  # printf 'a.txt\0Water boils.' | b2sum -l 64
        return int.from_bytes(bytes.fromhex(b2sum), "little", signed=True)

    assert passage_id("a.txt", "Water boils.") == signed("a64ae792f097df52")
    assert question_key("What is water?") == signed("94061e43b5ff701a")


def test_a_missing_source_counts_as_empty():
    assert passage_id(None, "text") == passage_id("", "text")


def test_moving_text_between_source_and_content_makes_another_passage():
    assert passage_id("ab", "c") != passage_id("a", "bc")


@given(st.text(), st.text())
def test_identities_are_signed_64_bit_numbers(source, content):
    assert -(2**63) <= passage_id(source, content) < 2**63


def test_a_lone_surrogate_has_an_identity():
    assert passage_id("a", parse_json('"\\ud800"')) != passage_id("a", parse_json('"\\ud801"'))


def test_wordings_that_differ_in_case_and_white_space_are_one_question():
    assert question_key("What  is\u00a0Straße\n?") == question_key(" what is STRASSE ?")
    assert question_key("What is water?") != question_key("What is water")


# The embedded text


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"source": "a.txt", "title": "Water"}, "Source: a.txt\nTitle: Water\nContent:\nIt boils."),
        ({"title": "Water"}, "Title: Water\nContent:\nIt boils."),
        ({"source": "a.txt", "title": None}, "Source: a.txt\nContent:\nIt boils."),
        ({"source": "", "page": 3}, "Content:\nIt boils."),
    ],
)
def test_lines_whose_metadata_is_missing_are_left_out_of_the_embedded_text(metadata, text):
    assert format_passage("It boils.", metadata) == text
    assert Document("It boils.", "", metadata).fmt_content == text


def test_a_document_keeps_the_embedded_text_that_it_brings():
    assert parse_document({**DOC, "fmt_content": "mine"}).fmt_content == "mine"


def test_a_rebuilt_embedded_text_is_not_written_again():
    assert Document("text", "", {"title": "t"}).to_dict() == {"page_content": "text", "metadata": {"title": "t"}}
    assert Document("text", "mine").to_dict() == {"page_content": "text", "metadata": {}, "fmt_content": "mine"}


@given(DOCUMENTS)
def test_a_document_written_and_read_again_is_the_same(document):
    again = parse_document(parse_json(json.dumps(document.to_dict())))
    assert again == document
    assert again.passage_id == document.passage_id


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


# What is wrong


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a document has to be an object, found 3"),
        (None, "a document has to be an object, found null"),
        ("text", "a document has to be an object, found a string"),
        ({}, "a document needs `page_content` (or `text`), found keys none"),
        ({"content": "x", "url": "y"}, "a document needs `page_content` (or `text`), found keys `content`, `url`"),
        ({"con\ntent": "x"}, "a document needs `page_content` (or `text`), found keys `con tent`"),
        ({"page_content": None}, "`page_content` has to be a string, found null"),
        ({"page_content": "x", "fmt_content": ["y"]}, "`fmt_content` has to be a string, found a list"),
        ({"page_content": "x", "metadata": "y"}, "`metadata` has to be an object, or JSON of one, found 'y'"),
        ({"text": {"a": 1}}, "`page_content` has to be a string, found an object"),
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
        ({"query": "x", "golds": []}, "no `questions` (or `question`), found keys `query`, `golds`"),
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
