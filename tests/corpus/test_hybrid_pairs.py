"""Single pairs have the scores that BM25 and the hybrid give them in the ranking of a whole corpus."""

import numpy as np
import pytest
import torch

from rqa_ray.corpus import topk
from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.corpus.hybrid_pairs import AskedWords, PassageMoments, WordScores, ZScores, word_z_scores, z_scores

GENERATOR = np.random.default_rng(4)
WORDS = "red green blue apple pear wine sea hill song rain the of".split()
TEXTS = [" ".join(GENERATOR.choice(WORDS, GENERATOR.integers(1, 12))) for _ in range(60)]
QUESTIONS = ["red apple", "the of", "", "wine wine sea", "unheard song", "hill rain blue green"]
ALL = np.indices((len(QUESTIONS), len(TEXTS))).reshape(2, -1)


def joined(bm25: Bm25, beside: tuple[str, ...] = ()) -> WordScores:
    asked = AskedWords.join([AskedWords.of(bm25, part) for part in (QUESTIONS[:2], QUESTIONS[2:])])
    return WordScores.of_words(bm25, asked, beside)


def test_pairs_have_bm25s_scores_to_the_bit_also_where_questions_come_in_parts():
    bm25 = Bm25(TEXTS)
    expected = bm25.scores(QUESTIONS).numpy()
    for found in (WordScores.of(bm25, QUESTIONS), joined(bm25, ("a red pear",))):
        assert (found.of_pairs(*ALL).reshape(expected.shape) == expected).all() and expected.any()
        np.testing.assert_allclose(found.asked.means, expected.mean(1), rtol=1e-5)
        np.testing.assert_allclose(found.asked.deviations, expected.std(1), rtol=1e-5)


def test_a_text_beside_the_corpus_is_scored_like_the_same_text_in_the_corpus():
    bm25, again = Bm25(TEXTS), (TEXTS[7], "unheard", TEXTS[9])
    found, expected = joined(bm25, again), bm25.scores(QUESTIONS).numpy()[:, [7, 9]]
    rows, positions = np.indices((len(QUESTIONS), 3)).reshape(2, -1)
    scores = found.of_pairs(rows, len(TEXTS) + positions).reshape(-1, 3)
    np.testing.assert_allclose(scores[:, [0, 2]], expected, rtol=1e-5)
    assert not scores[:, 1].any() and expected.any()


def test_pairs_have_the_same_scores_a_few_questions_at_a_time(monkeypatch):
    bm25, beside = Bm25(TEXTS), [*TEXTS[:9], "unheard"]
    order = GENERATOR.permutation(len(QUESTIONS) * 70)
    rows, positions = (part.ravel()[order] for part in np.indices((len(QUESTIONS), len(TEXTS) + len(beside))))
    expected = WordScores.of(bm25, QUESTIONS, beside).z_scores(rows, positions)
    for at_once in (1, 4 * len(TEXTS), 9_999):
        monkeypatch.setattr(topk, "SCORES_AT_ONCE", at_once)
        np.testing.assert_allclose(word_z_scores(bm25, QUESTIONS, beside, rows, positions), expected, atol=1e-5)
    assert len(word_z_scores(bm25, QUESTIONS, beside, rows[:0], positions[:0])) == 0


def test_a_corpus_without_words_scores_every_pair_0():
    found = joined(Bm25(["!!!", "..."]), ("a red pear",))
    rows, positions = np.indices((len(QUESTIONS), 3)).reshape(2, -1)
    assert not found.of_pairs(rows, positions).any() and not found.z_scores(rows, positions).any()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_pairs_have_the_hybrids_scores_where_the_corpus_comes_in_blocks_on_several_ranks(weight):
    bm25, passages, asked = Bm25(TEXTS), torch.randn(60, 8) + 3, torch.randn(len(QUESTIONS), 8)
    moments, other = PassageMoments(8), PassageMoments(8)
    for one, block in zip((moments, other, moments), passages.split(25), strict=True):
        one.add(block)
    moments.products += other.products
    scores = (asked @ passages.T).numpy().reshape(-1)
    means, deviations = moments.of_questions(asked)
    dense = z_scores(scores, means[ALL[0]], deviations[ALL[0]])
    found = ZScores(dense, joined(bm25).z_scores(*ALL)).mixed(weight).reshape(len(QUESTIONS), -1)
    ranked, positions = Hybrid(bm25, passages).rank(QUESTIONS, asked, [weight], 60)[weight]
    np.testing.assert_allclose(np.take_along_axis(found, positions, 1), ranked, atol=1e-4)
