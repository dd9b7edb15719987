"""Python looks for unused objects while nothing is imported, and not while something is."""

import gc

import pytest

from rqa_ray.quick_imports import quick_imports


def test_the_search_for_unused_objects_stops_in_the_block_and_goes_on_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
