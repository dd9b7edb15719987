"""Two rankings of the same questions are compared question by question."""

import json
from dataclasses import replace

import numpy as np

from rqa_ray.evaluation.metrics import question_metrics
from rqa_ray.reports import moves
from rqa_ray.reports.moves import Found, Listing, Passages, Questions
from tests.builders import asked_questions, documents

BEFORE = np.array([[4, 3, 1, 2, 0], [0, 2, 4, 1, 3], [4, 3, 1, 0, 2]])
AFTER = np.array([[0, 2, 1, 3, 4], [3, 1, 4, 2, 0], [2, 0, 1, 3, 4]])
PASSAGES = Passages(documents().passage_ids, documents().document)


def found(system: str, positions: np.ndarray) -> Found:
    return Found(system, question_metrics(PASSAGES.ids[positions], asked_questions().gold_ids), positions)


def moved(before: np.ndarray, after: np.ndarray) -> tuple[Listing, Listing]:
    """What was won, and what was lost."""
    questions = Questions(asked_questions(), PASSAGES, 2)
    lost, won = questions.won_and_lost(found("before", before), found("after", after), won="won", lost="lost")
    return won, lost


def test_a_question_that_finds_its_gold_earlier_is_won_and_in_the_other_direction_lost():
    (won, lost), (back_won, back_lost) = moved(BEFORE, AFTER), moved(AFTER, BEFORE)
    assert (won.number, lost.number) == (back_lost.number, back_won.number) == (3, 0)
    ranks = {one.question: (one.ranks["before"], one.ranks["after"]) for one in won.moves}
    assert ranks == {one.question: (one.ranks["after"], one.ranks["before"]) for one in back_lost.moves}
    gains = [1 / one.ranks["after"] - 1 / one.ranks["before"] for one in won.moves]
    assert all(gain > 0 for gain in gains)


def test_the_passages_above_a_gold_are_those_that_are_ranked_before_it():
    _, lost = moved(AFTER, BEFORE)
    for one in lost.moves:
        rank = one.ranks["after"]
        assert rank is None or len(one.above) == min(moves.MOST_ABOVE, rank - 1)
        assert not set(one.above) & set(one.golds)


def test_equal_rankings_win_and_lose_nothing():
    assert [(one.moves, one.number) for one in moved(BEFORE, BEFORE)] == [([], 0), ([], 0)]


def test_only_the_largest_moves_are_listed_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(moves, "MOST", 1)
    won, _ = moved(BEFORE, AFTER)
    assert (len(won.moves), won.number) == (1, 3)


def test_a_question_lists_few_of_many_golds(monkeypatch):
    monkeypatch.setattr(moves, "MOST_GOLDS", 1)
    won, _ = moved(BEFORE, AFTER)
    assert won.moves and all(len(one.golds) == 1 for one in won.moves)


def test_questions_without_all_golds_on_top_are_missed_and_those_that_others_answer_come_first():
    good, bad = found("dense", np.array([[4, 3, 1, 2], [0, 2, 4, 1], [4, 3, 1, 0]])), found("bm25", AFTER)
    bad.values["retr/document_recall/recall4"][0] = 0  # the first question is one that BM25 does not answer
    missed = Questions(asked_questions(), PASSAGES, 1).missed("missed", good, [bad])
    assert missed.number == int((good.values["retr/document_recall/recall4"] == 0).sum()) > 0
    rows = [asked_questions().questions.index(one.question) for one in missed.moves]
    by_bm25 = [bad.values["retr/document_recall/recall4"][row] for row in rows]
    assert by_bm25 == sorted(by_bm25, reverse=True) and len(set(by_bm25)) == 2
    alone = replace(bad, positions=None)  # of an earlier run, only the values are known
    assert all(
        list(one.ranks) == ["dense"]
        for one in Questions(asked_questions(), PASSAGES, 1).missed("", good, [alone]).moves
    )


def test_texts_of_any_size_and_any_number_of_questions_stay_within_the_size_of_a_page():
    """2,000 questions whose texts are as long, and as costly to escape, as texts can be."""
    number, text = 2_000, "<\u202e\x00€" * 5_000

    class Asked:
        questions = [f"{row} {text}" for row in range(number)]
        gold_ids = [[row] for row in range(number)]

        @staticmethod
        def gold_docs(row: int) -> list:
            return [moves.Document(text)] * 5

    ids = np.arange(number)
    before = np.stack([ids, (ids + 1) % number, (ids + 2) % number], axis=1)
    after = before[:, ::-1]
    of = [
        Found(name, question_metrics(ids[found], Asked.gold_ids), found)
        for name, found in (("before", before), ("after", after))
    ]
    document = json.loads(json.dumps({"page_content": text}))
    questions = Questions(Asked, Passages(ids, lambda position: document), 4)
    listings = questions.won_and_lost(*of, won="won", lost="lost")
    sizes = [sum(move.num_bytes for move in listing.moves) for listing in listings]
    assert listings[0].number == number and 0 < len(listings[0].moves) < moves.MOST
    assert max(sizes) <= moves.MOST_BYTES / 4
