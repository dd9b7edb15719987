"""Signatures of texts: what they say of pairs, against the texts themselves."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.corpus.near_duplicates import LIMIT, Signatures
from tests.conftest import WORDS

LONG = " ".join(np.random.default_rng(0).choice(WORDS, 300))


def contained(text: str, other: str) -> float:
    return float(Signatures.of([text, other]).contained(np.array([0]), np.array([1]))[0])


@pytest.mark.parametrize("other", ["Wash   at 30°, please!", "WASH AT 30 PLEASE", "wash\nat (30) please..."])
def test_a_text_that_differs_in_case_punctuation_and_white_space_has_all_of_the_other(other):
    assert contained("Wash at 30, please", other) == 1
    assert len(set(Signatures.of(["Wash at 30, please", other]).exact.tolist())) == 2


@pytest.mark.parametrize("text", ["", "...", "?! --"])
def test_a_text_without_words_is_near_to_nothing(text):
    assert contained(text, "...") == contained(text, LONG) == contained(LONG, text) == 0


def test_a_piece_is_nearly_held_by_the_whole_and_the_whole_not_by_the_piece():
    piece = " ".join(LONG.split()[100:200])
    assert contained(piece, LONG) > LIMIT and contained(LONG, piece) < LIMIT
    assert contained(piece, " ".join(LONG.split()[150:250])) < LIMIT


def test_texts_of_one_and_two_words_are_compared_as_a_whole():
    assert contained("red", "RED") == contained("red wine", "red, wine") == 1
    assert contained("red wine", "red") == contained("red", "red wine") == 0


def test_the_estimate_is_close_to_the_share_of_shingles():
    generator, texts = np.random.default_rng(1), []
    for length in (40, 80, 160, 250, 299):
        start = generator.integers(0, 300 - length, 4)
        texts += [" ".join(LONG.split()[begin : begin + length]) for begin in start]

    def shingles(text: str) -> set[str]:
        words = re.findall(r"\w+", text)
        return {" ".join(words[place : place + 3]) for place in range(len(words) - 2)}

    one, other = (part.ravel() for part in np.meshgrid(np.arange(20), np.arange(20)))
    sets = [shingles(text) for text in texts]
    true = np.array([len(sets[i] & sets[j]) / len(sets[i]) for i, j in zip(one, other, strict=True)])
    error = Signatures.of(texts).contained(one, other) - true
    assert abs(error.mean()) < 0.05 and error.std() < 0.1


def test_parts_join_to_the_signatures_of_all_texts():
    texts = [LONG, "", "two words", LONG * 20]
    joined = Signatures.join([Signatures.of(texts[:1]), Signatures.of([]), Signatures.of(texts[1:])])
    for part, whole in zip(vars(joined).values(), vars(Signatures.of(texts)).values(), strict=True):
        assert part.dtype == whole.dtype and np.array_equal(part, whole)


@given(st.text(), st.text())
def test_any_text_has_a_signature(text, other):
    assert 0 <= contained(text, other) and contained(text, text) in (0, 1)
