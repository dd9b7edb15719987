"""Golds are those of all rows with the wording of a question, each once, with its highest grade."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.golds import Golds

SMALL = st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1])
PAIRS = st.lists(st.tuples(SMALL, SMALL, st.sampled_from([1.0, 2.0, 0.5])), min_size=1, max_size=12)


def graded(pairs: list[tuple[int, int, float]]) -> Golds:
    keys, ids, grades = zip(*pairs, strict=True)
    return Golds.of(np.array(keys), np.array(ids), np.array(grades))


@given(PAIRS)
def test_golds_are_the_sorted_union_over_equal_wordings_with_the_highest_grades(pairs):
    golds = graded(pairs)
    for row, (key, _, _) in enumerate(pairs):
        of_key = sorted((passage, grade) for other, passage, grade in pairs if other == key)
        assert golds.grades_of(row) == dict(of_key)  # of equal passages, the last one has the highest grade
        assert golds[row].tolist() == sorted(dict(of_key))


@given(PAIRS, st.data())
def test_selected_golds_are_those_of_the_questions_in_the_order_asked_for(pairs, data):
    golds = graded(pairs)
    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8))
    selected = golds.select(np.array(chosen))
    assert [selected.grades_of(row) for row in range(len(selected))] == [golds.grades_of(row) for row in chosen]


def test_lists_of_ids_have_the_grade_1_and_a_repeated_id_counts_once():
    golds = Golds.of_lists([[4, 2, 4], np.array([-1])])
    assert golds.grades is None
    assert [golds.grades_of(row) for row in range(2)] == [{2: 1, 4: 1}, {-1: 1}]
