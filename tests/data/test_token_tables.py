"""Records become rows that name their passages; the first row of a task that names a passage brings its tokens."""

import numpy as np
import pytest

from rqa_ray.data.golds import Golds
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.schema import Document, QARecord, question_key
from rqa_ray.data.token_tables import question_rows, to_table, train_rows
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer

DOCUMENTS = [Document(f"text {number}", "", {"source": f"s{number}"}) for number in range(4)]
RECORDS = [
    (1, QARecord([], DOCUMENTS[:1], DOCUMENTS[3:], num_empty_questions=1)),  # brings nothing: it makes no row
    (2, QARecord(["one", "two"], DOCUMENTS[:2], DOCUMENTS[2:3])),
    (
        3,
        QARecord(
            ["three"], DOCUMENTS[1:2], [DOCUMENTS[0], DOCUMENTS[3]], hard_neg_scores=[0.5, 0.25], gold_scores=[2.0]
        ),
    ),
]


@pytest.fixture
def tokenizer(tiny_model) -> TextTokenizer:
    return TextTokenizer.load(ModelSpec(tiny_model, read_settings(tiny_model)))


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_passage_is_brought_and_tokenized_once_in_a_task_and_named_by_every_row(tokenizer, at_once) -> None:
    named: set[tuple[int, int]] = set()
    parts = [train_rows(RECORDS[start : start + at_once], tokenizer, named) for start in range(0, 3, at_once)]
    rows = sum(parts, [])
    assert [len(row["new_passage_ids"]) for row in rows] == [3, 0, 0, 0, 1]
    assert tokenizer.num_texts == 3 + 4  # questions and passages
    training = TrainingRows.from_tables([to_table([row | {"file": 0} for row in rows], "train")])
    texts = {document.passage_id: tokens for document, tokens in zip(DOCUMENTS, _tokens(tokenizer), strict=True)}
    assert {
        int(one): row.tolist() for one, row in zip(training.table.ids, training.table.tokens, strict=True)
    } == texts
    golds = [0, 1, 0, 1, 1]
    assert [row.tolist() for row in training.passages] == [texts[DOCUMENTS[number].passage_id] for number in golds]
    assert training.negatives.ids[-2:].tolist() == [DOCUMENTS[0].passage_id, DOCUMENTS[3].passage_id]
    assert training.negatives.scores is not None and training.negatives.scores[-2:].tolist() == [0.5, 0.25]
    assert np.nan_to_num(training.negatives.gold_scores, nan=-1).tolist() == [-1, -1, -1, -1, 2]


def test_an_instruction_goes_before_the_questions_of_its_record_in_training_and_in_evaluation(tokenizer) -> None:
    records = [
        (1, QARecord(["one", "two"], DOCUMENTS[:1], [], instruction="find: ")),
        (2, QARecord(["One"], DOCUMENTS[1:2], [], instruction="FIND: ")),
        (3, QARecord(["one"], DOCUMENTS[2:3], [])),
    ]
    expected = tokenizer.questions(["find: one", "find: two", "FIND: One", "one"])
    for rows in (train_rows(records, tokenizer, set()), question_rows(records, tokenizer)):
        assert [row["question_tokens"].tolist() for row in rows] == [row.tolist() for row in expected]
        # a wording with another instruction, or with none, is another question
        golds = Golds.of(*(np.array([row[name] for row in rows]) for name in ("question_key", "passage_id")))
        assert [len(golds[row]) for row in range(4)] == [2, 1, 2, 1]
        assert rows[3]["question_key"] == question_key("one") == question_key("one", "")
    assert [row["instruction"] for row in rows] == ["find: ", "find: ", "FIND: ", None]
    assert [row["question"] for row in rows] == ["one", "two", "One", "one"]


def _tokens(tokenizer: TextTokenizer) -> list[list[int]]:
    return [row.tolist() for row in tokenizer.passages([document.fmt_content for document in DOCUMENTS])]
