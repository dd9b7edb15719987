"""What is said about the data before training."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

from rqa_ray.data.report import data_report
from rqa_ray.errors import InputError
from tests.builders import table


@dataclass
class Part:
    """One input's blocks, in memory."""

    blocks: list[pa.Table]

    def tables(self, *columns: str) -> list[pa.Table]:
        return [block.select(columns) for block in self.blocks]


def part(kind: str, rows: list[dict]) -> Part:
    """Two blocks of one file with a question or document a line."""
    rows = [{"line": line, "question_key": line, "num_texts": 10} | row for line, row in enumerate(rows)]
    return Part([table(kind, rows[:1]), table(kind, rows[1:])])


def ids(*passages: int) -> list[dict]:
    return [{"passage_id": passage} for passage in passages]


CORPUS = part("corpus", ids(1, 2, 3))


def test_clean_data_is_counted_in_one_line():
    blocks = {"train": part("train", ids(1, 2)), "eval": part("questions", ids(3)), "corpus": CORPUS}
    assert data_report(blocks) == ["data: train 2 questions, eval 1 questions; corpus 3 passages"]


def test_a_question_with_several_golds_is_one_question_of_several_rows():
    rows = [{"line": 0, "item": gold, "question_key": 7, "passage_id": gold} for gold in (1, 2)]
    lines = data_report({"train": part("train", rows), "corpus": CORPUS})
    assert lines == ["data: train 1 questions (1 wordings with several golds); corpus 3 passages"]


def test_duplicates_of_the_corpus_are_counted():
    lines = data_report({"eval": part("questions", ids(1)), "corpus": part("corpus", ids(1, 2, 1, 1))})
    assert lines == ["data: eval 1 questions; corpus 2 passages (2 duplicates left out)"]


def test_golds_that_are_missing_from_the_corpus_are_warned_of_by_split():
    blocks = {"train": part("train", ids(1, 8, 9, 9)), "eval": part("questions", ids(1, 7)), "corpus": CORPUS}
    assert data_report(blocks)[1] == (
        "warning: gold passages that are missing from the corpus, so cannot be found: train 2, eval 1"
    )


def test_an_evaluation_without_any_gold_in_the_corpus_is_refused():
    with pytest.raises(InputError, match="^--eval_file: no.* gold passage.* in full_dataset_file_path"):
        data_report({"eval": part("questions", ids(7, 8)), "corpus": CORPUS})


def test_cut_texts_empty_questions_and_chats_are_said_once_each():
    rows = [
        {"passage_id": 1, "num_truncated": 3, "num_empty_questions": 2},
        {"passage_id": 2, "has_chat_history": True},
    ]
    lines = data_report({"train": part("train", rows), "corpus": CORPUS})
    assert lines[1:] == [
        "texts longer than max_seq_length, cut: train 15.0%",
        "warning: empty questions, left out: 2",
        "note: chat_history is not used; 1 rows have one",
    ]
