"""The lines about the data before training."""

import json

import pytest

from rqa_ray.data.counts import Counts
from rqa_ray.data.report import brief, check_golds, hard_negatives_that_answer
from rqa_ray.data.schema import Document
from rqa_ray.data.survey import Survey
from rqa_ray.errors import InputError
from tests.builders import table


def part(kind: str, rows: list[dict]) -> list:
    """Makes two blocks of one file, with one question or document in each line."""
    rows = [{"line": line, "question_key": line, "num_texts": 10} | row for line, row in enumerate(rows)]
    return [table(kind, some) for some in (rows[:1], rows[1:]) if some]


def ids(*passages: int) -> list[dict]:
    return [{"passage_id": passage} for passage in passages]


def survey(streamed: Counts | None = None, **inputs: list[dict]) -> Survey:
    """Makes a survey of splits and of a corpus, by default passages 1 to 3."""
    inputs = {"corpus": ids(1, 2, 3)} | inputs
    kinds = {"train": "train", "corpus": "corpus"}
    return Survey.of({name: part(kinds.get(name, "questions"), rows) for name, rows in inputs.items()}, streamed)


FILES = {"train": ["t.jsonl"], "eval": ["dev.jsonl", "more.jsonl"], "corpus": ["all/d.jsonl"]}


def lines(**inputs: list[dict]) -> list[str]:
    return brief(survey(**inputs), {})


def test_clean_data_is_counted_in_one_line():
    expected = ["data: train 2 questions, eval 1 questions; corpus 3 passages"]
    assert lines(train=ids(1, 2), eval=ids(3)) == expected


def test_a_question_with_several_golds_is_one_question_of_several_rows():
    rows = [{"line": 0, "item": gold, "question_key": 7, "passage_id": gold} for gold in (1, 2)]
    assert lines(train=rows) == ["data: train 1 questions (1 wordings with several golds); corpus 3 passages"]


def test_duplicates_of_the_corpus_are_counted():
    expected = ["data: eval 1 questions; corpus 2 passages (2 duplicates left out)"]
    assert lines(eval=ids(1), corpus=ids(1, 2, 1, 1)) == expected


def test_golds_that_are_missing_from_the_corpus_are_warned_of_by_split():
    assert lines(train=ids(1, 8, 9, 9), eval=ids(1, 7))[1] == (
        "warning: gold passages that are missing from the corpus, so cannot be found: train 2, eval 1"
    )


def test_an_evaluation_without_any_gold_in_the_corpus_is_refused():
    with pytest.raises(InputError, match="^dev.jsonl and 1 more file: none of .* in the corpus, all/d.jsonl; "):
        check_golds(survey(train=ids(1, 2), eval=ids(7, 8)), FILES, True)
    check_golds(survey(train=ids(1, 2), eval=ids(7, 1)), FILES, True)


def test_a_missing_gold_is_shown_beside_the_passage_that_has_its_text(tmp_path):
    def written(name: str, *records: dict) -> list[str]:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return [str(tmp_path / name)]

    golds = [{"text": "alpha", "source": "there"}, {"text": "beta", "source": 1.0}]
    found = survey(train=ids(1, 2), eval=[{"passage_id": number} for number in (1, -5)])
    files = {
        "eval": written("eval.jsonl", *({"question": "?", "gold_docs": [gold]} for gold in golds)),
        "corpus": written("corpus.jsonl", golds[0], {"text": "beta", "source": 1}),
    }
    found.missing["eval"][:] = Document("beta", "", {"source": 1.0}).passage_id
    assert brief(found, files)[1].endswith(
        f"eval 1; the first, {tmp_path}/eval.jsonl:2, has source (or _id, or title) 1.0, the corpus has the same "
        "page_content with 1"
    )
    files["corpus"] = written("corpus.jsonl", golds[0])
    assert brief(found, files)[1].endswith("eval.jsonl:2, has source (or _id, or title) 1.0")


@pytest.mark.parametrize("streamed", [False, True])
def test_training_questions_that_share_one_gold_have_nothing_to_learn_from(streamed):
    def check(golds: tuple[int, ...], draws_negatives: bool) -> None:
        whole = survey(train=ids(*golds), eval=ids(1))
        check_golds(survey(whole.train, eval=ids(1)) if streamed else whole, FILES, draws_negatives)

    with pytest.raises(InputError, match="^t.jsonl: all 3 questions have the same gold .* nothing to"):
        check((2, 2, 2), draws_negatives=False)
    check((2, 2, 2), draws_negatives=True)
    check((2, 2, 1), draws_negatives=False)


def test_training_questions_that_all_have_every_gold_have_nothing_to_learn_from():
    def rows(*pairs: tuple[int, int]) -> list[dict]:
        return [{"line": line, "question_key": key, "passage_id": gold} for line, (key, gold) in enumerate(pairs)]

    for pairs in ([(7, 1), (7, 2), (7, 3)], [(7, 1), (7, 2), (8, 1), (8, 2)]):
        with pytest.raises(InputError, match=f"^t.jsonl: all {len(pairs)} questions have the same gold passages"):
            check_golds(survey(train=rows(*pairs)), FILES, False)
    check_golds(survey(train=rows((7, 1), (7, 2), (8, 1))), FILES, False)


def test_cut_texts_empty_questions_and_chats_are_said_once_each():
    rows = [
        {"passage_id": 1, "num_truncated": 3, "num_empty_questions": 2},
        {"passage_id": 2, "has_chat_history": True},
    ]
    assert lines(train=rows)[1:] == [
        "texts longer than max_seq_length, cut: train 15.0%",
        "warning: empty questions, left out: 2",
        "note: chat_history is not used; 1 rows have one",
    ]


def test_what_was_counted_of_streamed_training_files_is_said_with_the_rest():
    streamed = Counts(num_rows=9, num_questions=9, num_empty=2, num_chats=3, smallest_gold=1, largest_gold=2)
    found = survey(streamed, eval=[{"passage_id": 1, "num_empty_questions": 1}])
    assert brief(found, {}) == [
        "data: eval 1 questions; corpus 3 passages",
        "warning: empty questions, left out: 3",
        "note: chat_history is not used; 3 rows have one",
    ]


def test_questions_with_a_gold_that_training_knows_are_counted_by_split():
    said = "note: questions with a gold that is also a gold of train: eval 1 (33%), test 2 (100%)"
    assert said in lines(train=ids(1, 2), eval=ids(1, 3, 3), test=ids(2, 1))
    assert len(lines(train=ids(1, 2), eval=ids(3))) == 1
    assert len(lines(eval=ids(3))) == 1  # the training files are streamed


def test_questions_whose_gold_is_a_hard_negative_of_training_are_counted_by_split():
    train = [{"passage_id": 1, "hard_negative_ids": [2, 3]}, {"passage_id": 2, "hard_negative_ids": [3]}]
    said = "note: questions with a gold that is also a hard negative of train: eval 2 (67%), test 1 (100%)"
    assert hard_negatives_that_answer(survey(train=train, eval=ids(1, 3, 3), test=ids(2))) == [said]
    assert hard_negatives_that_answer(survey(train=train, eval=ids(1))) == []
    assert hard_negatives_that_answer(survey(eval=ids(1))) == []  # the training files are streamed
