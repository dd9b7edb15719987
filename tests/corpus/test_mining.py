"""The rules of mining: the same as by brute force, and never a gold among the negatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.corpus.hybrid_pairs import HybridWeight
from rqa_ray.corpus.mining import (
    Candidates,
    MiningRules,
    PairScores,
    ScoredGolds,
    Verdict,
    Wordings,
    choose,
    refused_at,
)
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.corpus.topk import RunningTopK, search_block
from rqa_ray.data.columns import Ragged
from rqa_ray.data.passages import PassageTable
from rqa_ray.data.schema import question_key
from rqa_ray.training.mining_pass import Choice
from rqa_ray.training.rounds import Round
from tests.conftest import WORDS
from tests.corpus.mining_oracle import exact_scores, verdicts

NONE = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)


def ranking(*positions: int):
    """Of one question; the score of a passage is 1 / (position + 2)."""
    row = np.array([positions])
    return row, (1 / (row + 2)).astype(np.float32)


def of_one(candidates: Candidates, golds: dict[int, float], texts: list[str] | None = None, refused=(), **rules):
    """What is chosen for one question, with golds and their scores by position."""
    positions, scores = np.array([*golds]), np.array([*golds.values()], np.float32)
    texts = texts or [f"alone {number}" for number in range(100)]
    scored = ScoredGolds(positions, scores, np.array([0, len(golds)]))
    return choose(MiningRules(**rules), np.array([-7]), candidates, scored, Signatures.of(texts), set(refused))


def test_the_two_rankings_are_interleaved_and_a_passage_of_both_keeps_its_better_rank():
    found = Candidates.united(ranking(4, 2, 9), ranking(2, 7, 4))
    assert found.positions.tolist() == [4, 2, 7, 9]
    assert found.dense_ranks.tolist() == [1, 2, 0, 3] and found.bm25_ranks.tolist() == [3, 1, 2, 0]
    assert found.offsets.tolist() == [0, 4] and found.scores[1] == np.float32(1 / 4)


def test_a_ranking_that_ends_or_is_not_wanted_gives_no_more_candidates():
    assert Candidates.united(ranking(4, 2, 9), ranking(7, -1, -1)).positions.tolist() == [4, 7, 2, 9]
    assert Candidates.united(ranking(4, 2), NONE).positions.tolist() == [4, 2]
    assert Candidates.united(NONE, ranking(4, -1)).bm25_ranks.tolist() == [1]


def test_each_filter_drops_and_counts_what_it_should():
    article = "Open the app, go to settings and tap on returns; choose the order and print the label."
    texts = [article, article, article.upper() + " It takes a minute.", "close", "far", "far too"]
    candidates = Candidates.united(
        (np.array([[0, 1, 2, 3, 4]]), np.array([[0.9, 0.9, 0.8, 0.86, 0.2]], np.float32)), ranking(5)
    )
    candidates.scores[candidates.positions == 5] = 0.855
    mined = of_one(candidates, {0: 0.9}, texts)
    assert mined.counts() == {
        **{"gold": 1, "same_text": 1, "near_duplicate": 1, "suspect": 2, "spare": 0, "negative": 1}
    }
    assert mined.of(Verdict.SUSPECT).positions.tolist() == [5, 3]
    assert mined.levels(mined.of(Verdict.SUSPECT)) == pytest.approx([0.95, 0.86 / 0.9], abs=1e-6)
    assert mined.histogram()[[4, 5, 19, 20]].tolist() == [0, 1, 0, 2] and mined.histogram().sum() == 3


def test_a_passage_that_a_person_has_refused_is_no_suspect_of_its_question():
    ids = np.array([50, 51, 52, 53])
    refused = refused_at([(-7, 52), (8, 51), (-7, 99)], ids)
    assert refused == {(-7, 2), (8, 1)}
    dense = np.array([[1, 2]]), np.array([[0.99, 0.98]], np.float32)
    mined = of_one(Candidates.united(dense, NONE), {0: 1.0}, refused=refused)
    assert mined.verdicts.tolist() == [Verdict.SUSPECT, Verdict.NEGATIVE]


@pytest.mark.parametrize(("gold", "suspect", "right"), [(0.8, 0.761, 0.759), (-2.0, -2.09, -2.11), (0.0, 0.0, -1e-6)])
def test_the_margin_is_relative_to_the_gold_above_and_below_zero(gold, suspect, right):
    dense = np.array([[1, 2]]), np.array([[suspect, right]], np.float32)
    mined = of_one(Candidates.united(dense, NONE), {0: gold, 9: gold + 1})
    assert mined.verdicts.tolist() == [Verdict.SUSPECT, Verdict.NEGATIVE]


def test_negatives_are_drawn_from_the_first_ranks_alike_for_one_seed_and_round():
    dense = np.arange(1, 61)[None], np.linspace(0.9, 0.1, 60, dtype=np.float32)[None]
    candidates, drawn = Candidates.united(dense, NONE), []
    for seed, number in ((1, 0), (1, 0), (2, 0), (1, 1)):
        mined = of_one(candidates, {0: 1.0}, seed=seed, round=number, num_negatives=5)
        drawn.append(mined.of(Verdict.NEGATIVE).positions.tolist())
    assert drawn[0] == drawn[1] == sorted(drawn[0]) and len({*map(tuple, drawn)}) == 3
    assert max(max(one) for one in drawn) <= 20 and {len(one) for one in drawn} == {5}


def test_pairs_share_the_negatives_of_their_question():
    dense = np.array([[1, 2], [3, 4]]), np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    candidates = Candidates.united(dense, (np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32)))
    golds = ScoredGolds(np.array([0, 0]), np.array([1, 2], np.float32), np.arange(3))
    mined = choose(MiningRules(), np.array([5, 6]), candidates, golds, Signatures.of(WORDS[:5]))
    table = PassageTable(np.arange(10, 15), Ragged([], np.zeros(0, np.int64)))
    wordings = Wordings.of(np.array([5, 6, 6]), np.array([10, 10, 10]))
    alone, taught = (
        Round.of(Choice(mined, golds, weight), np.array([5, 6]), np.arange(10, 15), 3, 0.5).negatives(table, wordings)
        for weight in (None, HybridWeight(0.5, 0.0, 0.0, 0.0))
    )
    assert alone.ids.tolist() == [11, 12, 13, 14, 13, 14] and alone.offsets.tolist() == [0, 2, 4, 6]
    assert alone.scores is None and alone.round == 3
    np.testing.assert_allclose(taught.scores, [0.1, 0.2, 0.3, 0.4, 0.3, 0.4])
    assert taught.gold_scores.tolist() == [1, 2, 2]


@pytest.mark.parametrize("block", [1, 7, 40])
def test_pairs_are_scored_as_a_search_does_whatever_the_blocks_and_ranks(block):
    generator = np.random.default_rng(0)
    asked, passages = (torch.from_numpy(generator.normal(size=(n, 24)).astype(np.float32)) for n in (9, 40))
    questions, positions = generator.integers(0, 9, 200), generator.integers(0, 41, 200)
    ranks = PairScores(questions, positions), PairScores(questions, positions)
    for number, places in enumerate(torch.randperm(40).split(block)):
        ranks[number % 2].add(asked, places, passages[places])
    ranks[0].merge(ranks[1].scores)
    topk = RunningTopK(9, 40)
    search_block(asked, passages, torch.arange(40), topk)
    expected = np.full((9, 41), -np.inf, np.float32)  # the last passage does not come by
    np.put_along_axis(expected, topk.result()[1].numpy(), topk.result()[0].numpy(), axis=1)
    assert np.array_equal(ranks[0].scores, expected[questions, positions])


@st.composite
def corpora(draw) -> tuple:
    """Texts of few words with many ties and near-duplicates, questions with golds, some beyond the corpus; rules."""
    words = st.lists(st.sampled_from(WORDS[:6]), min_size=0, max_size=8)
    texts = [" ".join(draw(words)) for _ in range(draw(st.integers(3, 25)))]
    texts = [text.upper() if draw(st.integers(0, 5)) == 0 else text for text in texts]
    num_passages = draw(st.integers(2, len(texts)))
    pair = st.tuples(st.sampled_from(["one", "One", " ONE ", "two", "three", "Three"]), st.integers(0, len(texts) - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=12))
    rules = MiningRules(
        num_negatives=draw(st.integers(1, 4)),
        margin=draw(st.sampled_from([0.3, 0.95, 1.0, 1000.0])),
        depth=draw(st.integers(1, 30)),
        seed=draw(st.integers(0, 3)),
        round=draw(st.integers(0, 3)),
    )
    mine_from = draw(st.sampled_from([("dense",), ("bm25",), ("dense", "bm25")]))
    return texts, num_passages, pairs, rules, mine_from, draw(st.integers(0, 99))


def scores_of(num_questions: int, num_texts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense scores, negative ones too, and BM25's, most of them 0; both with ties."""
    generator = np.random.default_rng(seed)
    questions, texts = generator.integers(-2, 3, (num_questions, 4)), generator.integers(-2, 3, (num_texts, 4))
    return exact_scores(questions, texts), np.maximum(generator.integers(-9, 6, (num_questions, num_texts)), 0)


def mine(texts, num_passages, wordings, rules, mine_from, dense, lexical):
    """What the pure core makes of scores; the ids of passages are their positions."""

    def top(scores: np.ndarray, name: str, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-scores, axis=1, kind="stable")[:, : rules.depth if name in mine_from else 0]
        positions = np.where(np.take_along_axis(found, order, axis=1), order, -1)
        return positions, np.take_along_axis(dense, order, axis=1)

    inside, lexical = dense[:, :num_passages], lexical[:, :num_passages]
    candidates = Candidates.united(top(inside, "dense", inside > -99), top(lexical, "bm25", lexical > 0))
    golds, questions = wordings.golds, np.repeat(np.arange(len(wordings.keys)), np.diff(wordings.golds.offsets))
    scored = ScoredGolds(golds.ids, dense[questions, golds.ids], golds.offsets)
    return choose(rules, wordings.keys, candidates, scored, Signatures.of(texts))


@settings(max_examples=150)
@given(corpora())
def test_the_choice_is_that_of_brute_force_and_has_no_gold_by_id_text_or_other_wording(corpus):
    texts, num_passages, pairs, rules, mine_from, seed = corpus
    keys = np.array([question_key(question) for question, _ in pairs])
    wordings = Wordings.of(keys, np.array([gold for _, gold in pairs]))
    dense, lexical = scores_of(len(wordings.keys), len(texts), seed)
    mined = mine(texts, num_passages, wordings, rules, mine_from, dense, lexical)
    found = mined.candidates
    for row, (key, gold) in enumerate(zip(wordings.keys.tolist(), wordings.golds, strict=True)):
        assert {*gold} == {other for question, other in pairs if question_key(question) == key}
        part = slice(found.offsets[row], found.offsets[row + 1])
        places, verdict = found.positions[part], mined.verdicts[part]
        seen = dense[row], lexical[row][:num_passages]
        told = verdicts(rules, key, gold.tolist(), *seen, texts, num_passages, mine_from)
        named = zip(places, found.dense_ranks[part], found.bm25_ranks[part], strict=True)
        assert list(named) == told.candidates
        assert {*places[verdict == Verdict.GOLD]} == told.gold
        assert {*places[verdict == Verdict.SAME_TEXT]} == told.same_text
        assert {*places[verdict == Verdict.NEAR_DUPLICATE]} == told.near_duplicate
        assert places[verdict == Verdict.SUSPECT].tolist() == told.suspects
        assert places[verdict == Verdict.NEGATIVE].tolist() == told.negatives

    ids = np.arange(len(texts))
    table = PassageTable(ids, Ragged([], np.zeros(0, np.int64)))
    found = Choice(mined, ScoredGolds(ids, ids, ids), None)
    negatives = Round.of(found, wordings.keys, ids, 1, 0.5).negatives(table, wordings)
    for pair, (question, _) in enumerate(pairs):
        here = {*negatives.ids[negatives.offsets[pair] : negatives.offsets[pair + 1]].tolist()}
        golds = {other for asked, other in pairs if question_key(asked) == question_key(question)}
        assert not here & golds and not {texts[i] for i in here} & {texts[i] for i in golds}
