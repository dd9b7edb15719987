"""Two rankings of the same questions are compared question by question."""

import numpy as np
import pytest

from rqa_ray.data.schema import Document
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.reports import moves
from rqa_ray.reports.moves import Moves
from tests.builders import asked_questions, documents

BEFORE = np.array([[4, 3, 1, 2, 0], [0, 2, 4, 1, 3], [4, 3, 1, 0, 2]])
AFTER = np.array([[0, 2, 1, 3, 4], [3, 1, 4, 2, 0], [2, 0, 1, 3, 4]])


def moved(before: np.ndarray, after: np.ndarray) -> Moves:
    return Moves.of(Comparison.of(asked_questions(), documents(), before, after), documents())


def test_a_question_that_finds_its_gold_earlier_is_won_and_in_the_other_direction_lost():
    found = moved(BEFORE, AFTER)
    back = moved(AFTER, BEFORE)
    assert (found.num_won, found.num_lost) == (back.num_lost, back.num_won)
    assert found.num_won + found.num_lost > 0
    assert {one.question: one.ranks for one in found.won} == {one.question: one.ranks[::-1] for one in back.lost}
    changes = [one.change for one in found.won]
    assert changes == sorted(changes, reverse=True) and all(change > 0 for change in changes)


def test_the_passages_above_a_gold_are_those_that_are_ranked_before_it():
    found = moved(AFTER, BEFORE)
    for one in found.lost:
        assert one.ranks[1] is None or len(one.above) == min(moves.MOST_ABOVE, one.ranks[1] - 1)
        assert not set(one.above) & set(one.golds)


def test_equal_rankings_win_and_lose_nothing():
    found = moved(BEFORE, BEFORE)
    assert (found.won, found.lost, found.num_won, found.num_lost) == ([], [], 0, 0)


def test_only_the_largest_moves_are_listed_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(moves, "MOST", 1)
    whole = moved(BEFORE, AFTER)
    assert (len(whole.won), whole.num_won) == (1, 3)


def test_a_question_lists_few_of_many_golds(monkeypatch):
    monkeypatch.setattr(moves, "MOST_GOLDS", 1)
    found = moved(BEFORE, AFTER)
    assert found.won and all(len(one.golds) == 1 for one in found.won)


def test_lengths_of_questions_go_from_short_to_long():
    names = ["over 20", "11 to 20", "6 to 10", "1 to 5"]
    assert sorted(names, key=moves._order) == names[::-1]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://a.b/c#d", "a.b"),
        ("docs/a.md", "docs"),
        ("/data/docs/a.md", "data"),
        ("https://[REDACTED]/page", "https://[REDACTED]/page"),
        (None, "none"),
        ("x" * 5000, "x" * 60),
    ],
)
def test_any_source_has_a_short_name(source, name):
    assert moves._source(Document("text", "", {"source": source})) == name
