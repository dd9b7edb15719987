"""The id and the embedded text of records."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.formats import parse_document, parse_json
from rqa_ray.data.schema import Document, format_passage, passage_id, question_key, text_hash

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
SCALARS = st.none() | st.integers() | st.text(max_size=8)
METADATA = st.builds(
    lambda more, own: more | own,
    st.dictionaries(st.sampled_from(["page"]) | st.text(max_size=2), VALUES, max_size=3),
    st.dictionaries(st.sampled_from(["source", "title", "_id"]), SCALARS, max_size=3),
)
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


def test_without_a_source_the_id_and_then_the_title_take_its_place():
    beir = [{"_id": str(number), "title": f"Title {number % 6}", "text": ""} for number in range(7)]
    assert len({parse_document(value).passage_id for value in beir}) == 7
    assert len({parse_document(value | {"_id": ""}).passage_id for value in beir}) == 6
    assert Document("x", "", {"_id": "7", "title": "T"}).passage_id == passage_id("7", "x")
    assert Document("x", "", {"source": None, "title": "T"}).passage_id == passage_id("T", "x")
    assert Document("x", "", {"source": "a", "_id": "7"}).passage_id == passage_id("a", "x")
    assert Document("x", "", {"source": 0, "_id": "7"}).passage_id == passage_id(0, "x")


def test_moving_text_between_source_and_content_makes_another_passage():
    assert passage_id("ab", "c") != passage_id("a", "bc")


@given(st.text(), st.text())
def test_identities_are_signed_64_bit_numbers(source, content):
    assert -(2**63) <= passage_id(source, content) < 2**63


def test_an_embedded_text_has_a_hash_of_its_own():
    assert text_hash("text") == passage_id(None, "text") != text_hash("Text")


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


def test_a_source_or_title_of_zero_is_embedded_as_it_is_part_of_the_id():
    assert format_passage("Water boils.", {"source": 0, "title": 0}) == ("Source: 0\nTitle: 0\nContent:\nWater boils.")
    assert format_passage("Water boils.", {"source": None, "title": ""}) == "Content:\nWater boils."


def test_places_in_a_page_are_of_one_source_document_and_a_passage_without_origin_is_its_own():
    page = [Document(text, "", {"source": f"https://a.org/page#{text}"}) for text in ("1", "2")]
    assert page[0].source_id == page[1].source_id == Document("3", "", {"source": "https://a.org/page"}).source_id
    assert page[0].source_id != Document("1", "", {"source": "https://a.org/other"}).source_id
    assert len({Document(text).source_id for text in ("1", "2")}) == 2
