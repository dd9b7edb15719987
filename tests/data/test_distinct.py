"""Of several documents with one id, the first counts; a different embedded text is never ignored silently."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data import distinct
from rqa_ray.data.distinct import clashing, first_places, places_of, read_distinct
from rqa_ray.errors import InputError


def write(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def doc(text: str, source: str, title: str = "") -> dict:
    return {"text": text, "source": source, "title": title}


IDS = st.lists(st.integers(-3, 3).map(lambda number: number * 2**60), max_size=12)


@given(IDS, st.sampled_from([2, distinct.SORTED_AT_ONCE]))
def test_the_first_of_each_passage_is_kept(ids, at_once):
    with mock.patch.object(distinct, "SORTED_AT_ONCE", at_once):
        assert first_places(np.array(ids, np.int64)).tolist() == sorted(ids.index(number) for number in set(ids))


@given(IDS, st.sets(st.integers(-3, 3)), st.sampled_from([2, distinct.SORTED_AT_ONCE]))
def test_wanted_ids_are_found_at_their_places(wanted, numbers, at_once):
    ids = [number * 2**60 for number in numbers]
    with mock.patch.object(distinct, "SORTED_AT_ONCE", at_once):
        found = places_of(np.array(wanted, np.int64), np.array(ids, np.int64))
    assert found.tolist() == [ids.index(one) if one in ids else -1 for one in wanted]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), max_size=12))
def test_passages_clash_that_have_several_texts(pairs):
    ids, hashes = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = sorted(number for number in set(ids.tolist()) if len({h for i, h in pairs if i == number}) > 1)
    assert clashing(ids, hashes).tolist() == expected


def test_documents_are_read_once_each_over_all_files(tmp_path):
    files = [
        write(tmp_path / "1.jsonl", doc("alpha", "a"), doc("beta", "b"), doc("alpha", "a")),
        write(tmp_path / "2.jsonl", doc("alpha", "c"), doc("beta", "b")),
    ]
    found = [(document.page_content, document.origin) for document in read_distinct(files)]
    assert found == [("alpha", "a"), ("beta", "b"), ("alpha", "c")]


def test_a_passage_with_another_embedded_text_is_refused_with_both_texts_and_places(tmp_path):
    long = "The same long beginning of both of these titles, "
    files = [
        write(tmp_path / "1.jsonl", doc("alpha", "a", long + "and one end")),
        write(tmp_path / "2.jsonl", doc("beta", "b"), doc("alpha", "a", long + "and two ends")),
    ]
    with pytest.raises(InputError) as error:
        list(read_distinct(files))
    assert str(error.value) == (
        f"{files[1]}:2: the same passage as in {files[0]}:1 (same page_content, and source or _id or title), "
        "but its embedded text is 'f these titles, and two ends\\nContent:\\nalpha', not 'f these titles, and one "
        "end\\nContent:\\nalpha'; give each passage its own source"
    )
    assert [document.page_content for document in read_distinct(files, skip_bad=True)] == ["alpha", "beta"]
