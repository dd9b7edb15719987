"""The cutting of rows into chunks, padded and packed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.retriever.token_batches import MAX_SPREAD, Chunk, length_sorted_chunks

PAD = 0


def token_rows(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 140, length).astype(np.int32) for length in lengths]


def texts(chunk: Chunk) -> list[np.ndarray]:
    """The token rows of a chunk, without padding."""
    if chunk.attention_mask is None:
        return [part.numpy() for part in chunk.input_ids[0].split(chunk.lengths)]
    return [ids[mask.bool()].numpy() for ids, mask in zip(chunk.input_ids, chunk.attention_mask, strict=True)]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 7)),
    st.booleans(),
)
def test_chunks_keep_rows_budget_and_order(lengths, max_tokens, max_rows, packed):
    rows = token_rows(lengths)
    chunks, order = length_sorted_chunks(rows, max_tokens, PAD, packed, max_rows)
    found, previous_shortest = [], 1000
    for chunk in chunks:
        assert chunk.input_ids.dtype == torch.int64
        assert chunk.num_tokens <= max_tokens or len(chunk) == 1
        assert max_rows is None or len(chunk) <= max_rows
        assert chunk.lengths == sorted(chunk.lengths) == [len(text) for text in texts(chunk)]
        assert chunk.lengths[-1] <= previous_shortest  # like lengths together, the longest first
        previous_shortest = chunk.lengths[0]
        found += texts(chunk)
    assert sorted(order.tolist()) == list(range(len(rows)))
    for row, place in zip(rows, order.tolist(), strict=True):
        np.testing.assert_array_equal(found[place], row)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_padded_chunks_are_as_wide_as_their_longest_text_and_masked_behind_each(lengths, max_tokens):
    for chunk in length_sorted_chunks(token_rows(lengths), max_tokens, PAD)[0]:
        assert chunk.input_ids.shape == chunk.attention_mask.shape == (len(chunk), chunk.lengths[-1])
        assert (chunk.input_ids[chunk.attention_mask == 0] == PAD).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_packed_chunks_have_no_padding_and_know_where_each_token_is(lengths, max_tokens):
    for chunk in length_sorted_chunks(token_rows(lengths), max_tokens, PAD, packed=True)[0]:
        assert chunk.num_tokens == sum(chunk.lengths) and chunk.attention_mask is None
        assert chunk.offsets.diff().tolist() == chunk.lengths
        padded = torch.zeros(len(chunk) * chunk.lengths[-1], dtype=torch.long)
        padded[chunk.places] = chunk.input_ids[0]
        for text, row in zip(texts(chunk), padded.view(len(chunk), -1), strict=True):
            assert row[: len(text)].tolist() == text.tolist() and not row[len(text) :].any()
        assert chunk.position_ids[0].tolist() == [place for length in chunk.lengths for place in range(length)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(20, 100), st.booleans())
def test_no_other_cut_has_fewer_tokens_where_a_chunk_costs_a_twentieth_of_its_budget(lengths, max_tokens, packed):
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
    chunks, _ = length_sorted_chunks(token_rows(lengths), max_tokens, PAD, packed)
    assert cost([chunk.lengths for chunk in chunks]) == pytest.approx(min(possible))


def test_a_packed_chunk_of_many_short_texts_has_no_long_one():
    chunks, _ = length_sorted_chunks(token_rows([3] * 2000 + [500] * 4), 10_000, PAD, packed=True)
    assert max(len(chunk) * chunk.lengths[-1] for chunk in chunks) <= MAX_SPREAD * 10_000


@pytest.mark.parametrize("packed", [False, True])
def test_no_rows_are_no_chunks(packed):
    chunks, order = length_sorted_chunks([], 100, PAD, packed)
    assert chunks == [] and order.tolist() == []
