"""Columns of Arrow blocks as numpy arrays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.columns import Ragged, inner, inner_places, list_lengths, runs

LISTS = st.lists(st.lists(st.integers(-9, 9), max_size=3), min_size=1, max_size=8)


def blocks(lists: list[list[int]], cut: int) -> list[pa.Table]:
    """Returns one column in two blocks; the second block is a slice of a longer one."""
    whole = pa.table({"x": pa.array([[99], *lists], pa.list_(pa.int64()))})
    return [whole.slice(1, cut), whole.slice(1 + cut)]


@given(LISTS, st.data())
def test_the_items_of_lists_are_found_in_the_order_of_the_rows(lists, data):
    tables = blocks(lists, data.draw(st.integers(0, len(lists))))
    order = np.array(data.draw(st.permutations(range(len(lists)))))
    values = np.concatenate([chunk.values.to_numpy() for table in tables for chunk in table["x"].chunks])
    places, offsets = inner_places(tables, "x", order)
    found = [values[places[offsets[row] : offsets[row + 1]]].tolist() for row in range(len(lists))]
    assert found == [lists[row] for row in order]
    assert inner(tables, "x").tolist() == sum(lists, [])
    assert list_lengths(tables, "x").tolist() == [len(one) for one in lists]


def test_runs_are_numbers_from_each_start_on():
    places, offsets = runs(np.array([5, 0, 7]), np.array([2, 0, 3]))
    assert (places.tolist(), offsets.tolist()) == ([5, 6, 7, 8, 9], [0, 2, 2, 5])


def test_rows_that_are_taken_are_views_and_may_come_again():
    rows = Ragged([pa.array([[1], [2, 3], []], pa.list_(pa.int32()))], np.arange(3))
    taken = rows.take(np.array([2, 1, 1]))
    assert [row.tolist() for row in taken] == [[], [2, 3], [2, 3]]
    assert taken.lengths.tolist() == [0, 2, 2] and len(rows) == 3
    assert np.shares_memory(taken[1], rows[1])
    with pytest.raises(IndexError):
        taken[3]
