"""Rows are cut into token batches, padded and packed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.retriever.token_batches import MAX_SPREAD, TokenBatch, length_sorted_batches

PAD = 0


def token_rows(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 140, length).astype(np.int32) for length in lengths]


def texts(token_batch: TokenBatch) -> list[np.ndarray]:
    """Returns the token rows of a token batch, without padding."""
    if token_batch.attention_mask is None:
        return [part.numpy() for part in token_batch.input_ids[0].split(token_batch.lengths)]
    return [
        ids[mask.bool()].numpy() for ids, mask in zip(token_batch.input_ids, token_batch.attention_mask, strict=True)
    ]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 7)),
    st.booleans(),
)
def test_token_batches_keep_rows_budget_and_order(lengths, max_tokens, max_rows, packed):
    rows = token_rows(lengths)
    token_batches, order = length_sorted_batches(rows, max_tokens, PAD, packed, max_rows)
    found, previous_shortest = [], 1000
    for token_batch in token_batches:
        assert token_batch.input_ids.dtype == torch.int64
        assert token_batch.num_tokens <= max_tokens or len(token_batch) == 1
        assert max_rows is None or len(token_batch) <= max_rows
        assert token_batch.lengths == sorted(token_batch.lengths) == [len(text) for text in texts(token_batch)]
        assert token_batch.lengths[-1] <= previous_shortest  # like lengths together, the longest first
        previous_shortest = token_batch.lengths[0]
        found += texts(token_batch)
    assert sorted(order.tolist()) == list(range(len(rows)))
    for row, place in zip(rows, order.tolist(), strict=True):
        np.testing.assert_array_equal(found[place], row)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_padded_token_batches_are_as_wide_as_their_longest_text_and_masked_behind_each(lengths, max_tokens):
    for token_batch in length_sorted_batches(token_rows(lengths), max_tokens, PAD)[0]:
        assert (
            token_batch.input_ids.shape
            == token_batch.attention_mask.shape
            == (len(token_batch), token_batch.lengths[-1])
        )
        assert (token_batch.input_ids[token_batch.attention_mask == 0] == PAD).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_packed_token_batches_have_no_padding_and_know_where_each_token_is(lengths, max_tokens):
    for token_batch in length_sorted_batches(token_rows(lengths), max_tokens, PAD, packed=True)[0]:
        assert token_batch.num_tokens == sum(token_batch.lengths) and token_batch.attention_mask is None
        assert token_batch.offsets.diff().tolist() == token_batch.lengths
        padded = torch.zeros(len(token_batch) * token_batch.lengths[-1], dtype=torch.long)
        padded[token_batch.places] = token_batch.input_ids[0]
        for text, row in zip(texts(token_batch), padded.view(len(token_batch), -1), strict=True):
            assert row[: len(text)].tolist() == text.tolist() and not row[len(text) :].any()
        assert token_batch.position_ids[0].tolist() == [
            place for length in token_batch.lengths for place in range(length)
        ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(20, 100), st.booleans())
def test_no_other_cut_has_fewer_tokens_where_a_token_batch_costs_a_twentieth_of_its_budget(
    lengths, max_tokens, packed
):
    def tokens(part: list[int]) -> int:
        return sum(part) if packed else len(part) * part[-1]

    def cost(parts: list[list[int]]) -> float:
        return sum(tokens(part) + max_tokens / 20 for part in parts)

    ordered = sorted(lengths)
    possible = []
    for places in itertools.product([False, True], repeat=len(ordered) - 1):
        ends = [index + 1 for index, is_cut in enumerate(places) if is_cut]
        parts = [ordered[start:end] for start, end in zip([0, *ends], [*ends, len(ordered)], strict=True)]
        if all(
            len(part) == 1 or tokens(part) <= max_tokens and len(part) * part[-1] <= MAX_SPREAD * max_tokens
            for part in parts
        ):
            possible.append(cost(parts))
    token_batches, _ = length_sorted_batches(token_rows(lengths), max_tokens, PAD, packed)
    assert cost([token_batch.lengths for token_batch in token_batches]) == pytest.approx(min(possible))


def test_a_packed_token_batch_of_many_short_texts_has_no_long_one():
    token_batches, _ = length_sorted_batches(token_rows([3] * 2000 + [500] * 4), 10_000, PAD, packed=True)
    assert max(len(token_batch) * token_batch.lengths[-1] for token_batch in token_batches) <= MAX_SPREAD * 10_000


@pytest.mark.parametrize("packed", [False, True])
def test_no_rows_are_no_token_batches(packed):
    token_batches, order = length_sorted_batches([], 100, PAD, packed)
    assert token_batches == [] and order.tolist() == []


@pytest.mark.parametrize("packed", [False, True])
def test_marked_tokens_are_counted_and_are_tokens_again(packed):
    rows = [np.array([~7, ~8, 9, 1], np.int32), np.array([~7, 1], np.int32), np.array([5, 6, 1], np.int32)]
    (token_batch,), order = length_sorted_batches(rows, 100, 0, packed)
    assert [token_batch.prompt_lengths[place] for place in order] == [2, 1, 0]
    assert sorted(token_batch.input_ids[token_batch.input_ids > 0].tolist()) == [1, 1, 1, 5, 6, 7, 7, 8, 9]
    assert length_sorted_batches(rows[2:], 100, 0, packed)[0][0].prompt_lengths is None
