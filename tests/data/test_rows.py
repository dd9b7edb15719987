"""Rows from Arrow blocks are the same, however the blocks were cut, ordered or sliced."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.columns import Ragged
from rqa_ray.data.golds import Golds
from rqa_ray.data.rows import Corpus, Questions, TrainingRows, distinct_documents, fingerprint
from tests.builders import random_train_rows, table

# Each takes one table and returns the same rows as blocks of another shape.
SHAPES = {
    "one block": lambda whole: [whole],
    "rows in another order": lambda whole: [whole.take(np.random.default_rng(0).permutation(len(whole)))],
    "slices in another order": lambda whole: [whole.slice(11), whole.slice(0, 4), whole.slice(4, 7)],
    "a block of many chunks": lambda whole: [pa.concat_tables([whole.slice(i, 3) for i in range(0, len(whole), 3)])],
    "a slice across chunks": lambda whole: [
        pa.concat_tables([whole.slice(5), whole]).slice(0, len(whole) - 5),
        pa.concat_tables([whole, whole]).slice(len(whole), 5),
    ],
    "slices of slices": lambda whole: [whole.slice(2).slice(3), whole.slice(0, 7).slice(0, 5)],
    "with empty blocks": lambda whole: [
        whole.slice(0, 0),
        whole,
        whole.slice(4, 0),
        whole.take(pa.array([], "int32")),
    ],
    "a block of each row": lambda whole: [whole.slice(row, 1) for row in reversed(range(len(whole)))],
    "sent by a stream": lambda whole: [sent(whole.slice(8)), sent(whole.slice(0, 8))],
}


def sent(part: pa.Table) -> pa.Table:
    """Returns what another process gets: a view of the message, without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def tokens(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in rows]


def lists(golds: Golds) -> list[list[int]]:
    return [ids.tolist() for ids in golds]


# Training rows


@pytest.mark.parametrize("shape", SHAPES)
def test_training_rows_are_the_rows_of_the_input_in_order_whatever_the_blocks(shape):
    expected = random_train_rows(24)
    rows = TrainingRows.from_tables(SHAPES[shape](table("train", expected)))
    assert len(rows) == 24
    assert tokens(rows.questions) == [row["question_tokens"] for row in expected]
    assert tokens(rows.passages) == [row["passage_tokens"] for row in expected]
    assert rows.passage_ids.tolist() == [row["passage_id"] for row in expected]


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_negatives_belong_to_their_row_whatever_the_blocks(shape):
    expected = random_train_rows(24)
    assert {len(row["hard_negative_ids"]) for row in expected} == {0, 1, 2, 3}
    rows = TrainingRows.from_tables(SHAPES[shape](table("train", expected)))
    for number, row in enumerate(expected):
        mine = rows.negatives.of_pairs(np.array([number]))
        assert rows.negatives.ids[mine].tolist() == row["hard_negative_ids"]
        assert [rows.negatives.tokens(one).tolist() for one in mine] == row["hard_negative_tokens"]
        assert rows.negatives.lengths(mine).tolist() == list(map(len, row["hard_negative_tokens"]))
    assert len(rows.negatives.ids) == rows.negatives.offsets[-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_passage_stands_in_the_table_once_whatever_the_blocks(shape):
    expected = random_train_rows(24)
    rows = TrainingRows.from_tables(SHAPES[shape](table("train", expected)))
    named = {row["passage_id"]: row["passage_tokens"] for row in expected}
    for row in expected:
        named |= dict(zip(row["hard_negative_ids"], row["hard_negative_tokens"], strict=True))
    assert rows.table.ids.tolist() == sorted(named)
    assert tokens(rows.table.tokens) == [named[number] for number in sorted(named)]


def test_files_come_one_after_the_other_and_items_of_a_line_in_order():
    places = [(file, line, item) for file in (0, 1) for line in (1, 2, 10) for item in (0, 1, 11)]
    rows = [
        {"file": file, "line": line, "item": item, "passage_id": number}
        for number, (file, line, item) in enumerate(places)
    ]
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    assert TrainingRows.from_tables([table("train", shuffled)]).passage_ids.tolist() == list(range(len(rows)))


def test_rows_without_any_hard_negative_have_none():
    rows = TrainingRows.from_tables([table("train", random_train_rows(5, max_negatives=0))])
    assert len(rows.negatives.ids) == 0
    assert rows.negatives.offsets.tolist() == [0] * 6


def test_a_teachers_scores_stay_with_their_negatives_and_none_are_none():
    own = {"hard_negative_ids": [4, 5], "hard_negative_tokens": [[1], [2]]}
    rows = [{"line": 1, **own}, {"line": 0, **own, "hard_negative_scores": [0.25, 2], "gold_score": 0.5}]
    negatives = TrainingRows.from_tables([table("train", rows)]).negatives
    assert np.nan_to_num(negatives.scores, nan=-1).tolist() == [0.25, 2, -1, -1]
    assert np.nan_to_num(negatives.gold_scores, nan=-1).tolist() == [0.5, -1]
    assert TrainingRows.from_tables([table("train", rows[:1])]).negatives.scores is None


def test_token_rows_are_views_of_the_block():
    block = table("train", random_train_rows(5))
    rows = TrainingRows.from_tables([block])
    values = block["new_passage_tokens"].chunk(0).values.values.to_numpy()
    assert all(np.shares_memory(row, values) for row in rows.passages)


def test_lengths_are_the_lengths_of_the_rows():
    rows = TrainingRows.from_tables([table("train", random_train_rows(9)).slice(4)])
    assert rows.passages.lengths.tolist() == [len(row) for row in rows.passages]


# Golds


def test_the_golds_of_a_row_are_those_of_every_row_with_its_wording():
    rows = [
        {"line": 1, "question_key": 7, "passage_id": 30},
        {"line": 2, "question_key": -8, "passage_id": 20},
        {"line": 3, "question_key": 7, "passage_id": 10},
        {"line": 4, "question_key": 7, "passage_id": 30},
    ]
    blocks = [table("train", rows[2:]), table("train", rows[:2])]
    assert lists(TrainingRows.from_tables(blocks).golds) == [[10, 30], [20], [10, 30], [10, 30]]


# Questions


@pytest.mark.parametrize("shape", SHAPES)
def test_a_question_is_there_once_for_each_time_that_it_is_asked_with_all_its_golds(shape):
    rows = []
    for line in range(6):  # two questions a line, with two golds each; lines 0 and 3 ask the same
        for question in range(2):
            for gold in range(2):
                rows.append(
                    {
                        "line": line,
                        "item": 2 * question + gold,
                        "question_item": question,
                        "question_key": 2 * (line % 3) + question if line in (0, 3) else 100 * line + question,
                        "question_tokens": [line, question],
                        "passage_id": 10 * line + gold,
                    }
                )
    asked = Questions.from_tables(SHAPES[shape](table("questions", rows)))
    assert len(asked) == 12
    assert tokens(asked.tokens) == [[line, question] for line in range(6) for question in range(2)]
    twice = [[0, 1, 30, 31]] * 2
    once = [[[10 * line, 10 * line + 1]] * 2 for line in range(6)]
    assert lists(asked.golds) == twice + once[1] + once[2] + twice + once[4] + once[5]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fingerprint_is_the_same_for_all_blocks_and_another_for_other_questions_golds_grades_or_passages(shape):
    def made(shape: str, change: str = "") -> str:
        rows = [
            {"line": line, "question_key": line, "question_tokens": [line, 1], "passage_id": 9} for line in range(18)
        ]
        documents = [*DOCUMENTS]
        if change == "question":
            rows[7]["question_tokens"] = [7, 2]
        if change == "gold":
            rows[7]["passage_id"] = 5
        if change == "passage":
            documents.pop()
        if change == "grade":
            rows[7]["gold_grade"] = 2.0
        tables = SHAPES[shape](table("questions", rows))
        return fingerprint(
            Questions.from_tables(tables), Corpus.from_tables(SHAPES["one block"](table("corpus", documents)))
        )

    assert made(shape) == made("one block")
    assert len({made("one block", change) for change in ("", "question", "gold", "grade", "passage")}) == 5


def test_the_same_line_number_in_two_files_is_two_questions():
    rows = [{"file": file, "line": 1, "passage_id": file, "question_key": file} for file in (0, 1)]
    assert len(Questions.from_tables([table("questions", rows)])) == 2


# The corpus

DOCUMENTS = [  # passage, text, tokens: passage 5 comes twice, with another text; 9 and 1 have the same text
    {"line": 1, "passage_id": 9, "text_hash": 70, "tokens": [1, 2]},
    {"line": 2, "passage_id": 5, "text_hash": 60, "tokens": [3]},
    {"line": 3, "passage_id": 1, "text_hash": 70, "tokens": [1, 2]},
    {"line": 4, "passage_id": 5, "text_hash": 50, "tokens": [4]},
    *({"line": line, "passage_id": -line, "text_hash": -line, "tokens": [line] * line} for line in range(5, 20)),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_passage_that_comes_twice_is_kept_where_it_came_first_in_document_order(shape):
    corpus = Corpus.from_tables(SHAPES[shape](table("corpus", DOCUMENTS)))
    assert corpus.passage_ids.tolist() == [9, 5, 1, *range(-5, -20, -1)]
    assert len(corpus) == 18


@pytest.mark.parametrize("shape", SHAPES)
def test_every_passage_has_its_own_text_and_equal_texts_are_there_once(shape):
    corpus = Corpus.from_tables(SHAPES[shape](table("corpus", DOCUMENTS)))
    texts = [corpus.tokens[text].tolist() for text in corpus.text_of]
    assert texts == [[1, 2], [3], [1, 2], *([line] * line for line in range(5, 20))]
    assert len(corpus.tokens) == 17


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.randoms())
def test_distinct_documents_are_the_first_of_each_passage(ids, random):
    rows = [{"line": line, "passage_id": number} for line, number in enumerate(ids)]
    random.shuffle(rows)
    kept = [rows[row]["line"] for row in distinct_documents([table("corpus", rows)])]
    assert kept == sorted({number: ids.index(number) for number in ids}.values())
