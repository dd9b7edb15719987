"""Eval questions that are held out of the training files share no source, no gold and no wording with the others."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.data.held_out import LINKS, HeldOut, links_of
from rqa_ray.data.schema import Document, QARecord, question_key
from rqa_ray.errors import InputError


def record(questions: list[str], *sources: object) -> QARecord:
    return QARecord(questions, [Document(f"text of {source}", metadata={"source": source}) for source in sources], [])


def links(records: list[QARecord]) -> list[pa.Table]:
    return [pa.Table.from_pylist([{"file": 0, **links_of(one)} for one in records], LINKS)]


def facts(records: list[QARecord]) -> set[int]:
    """Whatever an eval question may not have in common with a training question."""
    golds = {number for one in records for gold in one.gold_docs for number in (gold.passage_id, gold.source_id)}
    return golds | {question_key(question) for one in records for question in one.questions}


PLAIN = [record([f"q{number}", f"other {number}"], f"s{number // 4}") for number in range(80)]  # 20 sources of 8
records_that_share = st.lists(
    st.builds(
        lambda words, sources: record([f"q{word}" for word in words], *sources),
        st.lists(st.integers(0, 40), min_size=1, max_size=2),
        st.lists(st.integers(0, 40), min_size=1, max_size=2),
    ),
    min_size=2,
    max_size=40,
)


@given(records_that_share, st.floats(0.02, 0.9), st.integers(0, 9))
def test_both_sides_have_questions_and_nothing_in_common(records, share, seed):
    try:
        found = HeldOut.of(links(records), share, seed)
    except InputError:  # they are linked too much
        return
    sides = {name: [one for one in records if found.side(name).has(one)] for name in ("train", "eval", "test")}
    assert sides["train"] and sides["eval"] and not facts(sides["train"]) & facts(sides["eval"])
    assert len(sides["train"]) + len(sides["eval"]) == len(sides["test"]) == len(records)
    assert found.questions[0] == sum(len(one.questions) for one in sides["eval"])
    assert HeldOut.of(links(records[::-1]), share, seed).sources == found.sources, "whatever the order"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_about_the_share_is_held_out_by_a_seed_and_said(share):
    found = HeldOut.of(links(PLAIN), share, 1)
    held = round(20 * share)
    assert found.describe() == (
        f"eval: {8 * held} of the 160 questions of train_file, from {held} of 20 sources (--eval_share {share}); "
        f"train keeps {160 - 8 * held} questions, from {20 - held} sources"
    )
    assert found.sources == HeldOut.of(links(PLAIN), share, 1).sources
    assert len({HeldOut.of(links(PLAIN), share, seed).sources for seed in range(4)}) > 1


def test_one_source_or_a_share_that_holds_no_group_is_refused_with_what_to_do():
    with pytest.raises(
        InputError, match="^--eval_share 0.1: all 6 training questions have one source, or .*eval_file"
    ):
        HeldOut.of(links([record(["a", "b"], "s#1"), record(["c"], "s#2"), record(["d", "C ", "e"], "t")]), 0.1, 0)
    with pytest.raises(InputError, match=r"smallest group .* \(8 of 160 questions, .*raise the share, or give"):
        HeldOut.of(links(PLAIN), 0.02, 0)
    assert HeldOut.of(links(PLAIN[:8]), 0.99, 0).questions == (8, 16), "train keeps a group"
