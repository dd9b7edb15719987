"""A share of the training pairs goes by source document, and a smaller share is a part of a larger one."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.formats import parse_qa_record
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.schema import Document, QARecord
from rqa_ray.data.share import ALL, PairsInShare, Share
from rqa_ray.errors import InputError
from tests.builders import random_train_rows, table

KEYS = np.arange(-500, 500)


def rows_of(num_rows: int) -> list[dict]:
    """Training rows of which three in turn have one source."""
    return [row | {"source_key": row["line"] // 3} for row in random_train_rows(num_rows)]


def record(**metadata) -> QARecord:
    return QARecord(["one", "two"], [Document("text", metadata=metadata), Document("other")], [])


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 2**32))
def test_a_smaller_share_is_a_part_of_a_larger_one(one, other, seed):
    small, large = (Share(share, seed).takes(KEYS) for share in sorted([one, other]))
    assert not (small & ~large).any()


@given(st.floats(0.05, 1), st.integers(0, 2**32))
def test_about_the_share_of_the_sources_is_taken_and_another_seed_takes_others(share, seed):
    taken = Share(share, seed).takes(KEYS)
    assert abs(taken.mean() - share) < 5 * 0.5 / np.sqrt(len(KEYS))
    if share < 0.9:
        assert (taken != Share(share, seed + 1).takes(KEYS)).any()
    assert (Share(share, seed).takes(KEYS[::-1]) == taken[::-1]).all(), "whatever is read with it"


def test_a_record_goes_by_the_source_document_of_its_first_gold():
    page = record(source="https://example.org/page#2")
    assert page.source_key == record(source="https://example.org/page#1").source_key == page.gold_docs[0].source_id
    assert page.source_key != record(source="https://example.org/other#2").source_key


def test_rows_of_a_share_are_the_rows_of_a_file_that_has_no_others():
    rows, share = rows_of(60), Share(0.4, 1)
    kept = [row for row in rows if share.takes(np.array([row["source_key"]]))[0]]
    whole = [table("train", rows[30:]), table("train", rows[:30])]
    numbers = share.numbers(whole)
    assert [rows[number]["line"] for number in numbers] == [row["line"] for row in kept]
    assert 0 < len(kept) < 60
    found, alone = TrainingRows.of_share(whole, share), TrainingRows.from_tables([table("train", kept)])
    assert list(parts_of(found)) == list(parts_of(alone))
    assert list(parts_of(TrainingRows.of_share(whole, ALL))) == list(parts_of(TrainingRows.from_tables(whole)))


def parts_of(rows: TrainingRows) -> Iterator[tuple]:
    for number in range(len(rows)):
        negatives = rows.negatives.of_pairs(np.array([number]))
        yield (
            rows.pairs[number],
            rows.questions[number].tolist(),
            rows.passages[number].tolist(),
            rows.golds[number].tolist(),
            rows.negatives.ids[negatives].tolist(),
            [rows.negatives.tokens(one).tolist() for one in negatives],
        )


def test_pairs_and_sources_of_a_share_are_counted_and_none_are_refused():
    keys = np.arange(60) // 3
    kept = Share(0.4, 1).takes(np.arange(20)).sum()
    said = PairsInShare.of(Share(0.4, 1), keys).describe()
    assert said == f"{3 * kept} of 60 pairs, from {kept} of 20 sources"
    with pytest.raises(InputError, match="^--train_share 1e-09: has 0 of 60 pairs, from 0 of 20 sources; raise"):
        PairsInShare.of(Share(1e-9), keys)  # before anything is computed from the number of pairs
    with pytest.raises(InputError, match="^--train_share 0.01: has 0 of 60 pairs; raise the share$"):
        PairsInShare(Share(0.01), 0, 60)  # of streamed files


def test_all_questions_of_a_line_are_in_the_share_or_out_of_it():
    line = {"questions": ["a", "b"], "gold_docs": [{"page_content": "x", "metadata": {"source": "s#1"}}]}
    found = parse_qa_record(json.loads(json.dumps(line)))
    assert Share(0.5, 0).has(found) == Share(0.5, 0).takes(np.array([found.source_key]))[0]
