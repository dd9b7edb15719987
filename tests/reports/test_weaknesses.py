"""A model is worse at what a paired test finds, corrected for the number of kinds of questions."""

from types import SimpleNamespace

import numpy as np
import pytest

from rqa_ray.data.schema import Document
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.results import Evaluation, OfBm25, SplitResult
from rqa_ray.reports.weaknesses import against_bm25, weaknesses
from tests.builders import asked_questions, documents


def comparison(short: list[tuple[int, int]], long: list[tuple[int, int]]) -> Comparison:
    """One cluster for each question of 3 or of 25 words; the pairs are all of its metrics before and after."""
    questions = ["a short question"] * len(short) + ["word " * 25] * len(long)
    number = len(questions)
    asked = SimpleNamespace(
        questions=questions,
        gold_ids=[[row] for row in range(number)],
        gold_docs=lambda row: [Document("gold", "", {"source": f"http://host/{row}"})],
        clusters=SimpleNamespace(labels=np.arange(number)),
    )
    before, after = np.array([*short, *long], float).T
    values = tuple(dict.fromkeys(LABELS.values(), of) for of in (before, after))
    return Comparison(asked, (np.zeros((number, 1)), np.zeros((number, 1))), values)  # type: ignore[arg-type]


WON, LOST, SAME = (0, 1), (1, 0), (1, 1)


def test_a_kind_of_questions_is_found_where_all_questions_together_hide_it():
    found = weaknesses({"BM25": {"test": comparison([WON] * 20, [LOST] * 20)}})
    assert [one.metric for one in found] == list(HEADLINES)
    for one in found:
        assert (one.rival, one.split, one.questions, one.number) == (
            "BM25",
            "test",
            "words of the question: over 20",
            20,
        )
        assert (one.rival_value, one.value, one.change.mean) == (1.0, 0.0, -1.0)


def test_a_loss_of_a_kind_that_one_of_several_tests_may_find_by_chance_is_left_out():
    # 6 questions that lose: p = 2 / 64 in each test. There are 4 tests of kinds, so 0.05 / 4 would be needed.
    found = weaknesses({"base": {"test": comparison([SAME] * 10, [LOST] * 6)}})
    assert {one.questions for one in found} == {"all"} and [one.metric for one in found] == list(LABELS)
    assert found[0].change.p_value == pytest.approx(2 / 64)


@pytest.mark.parametrize("changes", [[SAME] * 20, [WON] * 20, [LOST, WON] * 10])
def test_what_is_equal_better_or_within_noise_is_no_weakness(changes):
    assert weaknesses({"base": {"test": comparison(changes, changes)}}) == []


def test_bm25_is_compared_on_the_splits_for_which_its_ranking_is_known():
    asked, corpus = asked_questions(), documents()
    best = np.array([[0, 1], [1, 3], [2, 0]])
    compared = {split: Comparison.of(asked, corpus, best[:, ::-1], best) for split in ("eval", "test")}
    known = OfBm25(best[:, ::-1], best * 1.0, np.zeros(3), np.ones(3))
    splits = {split: SplitResult({}, best, best, bm25) for split, bm25 in (("eval", known), ("test", None))}
    found = against_bm25(compared, corpus, Evaluation(splits))
    assert list(found) == ["eval"]
    assert (found["eval"].positions[0] == known.positions).all() and (found["eval"].positions[1] == best).all()
