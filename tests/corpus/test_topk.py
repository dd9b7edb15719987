"""Search and corpus loss compared with plain loops, for any blocks, in any order, in any number of shards.

Embeddings are small integers, so that every matrix product is exact and there are many ties.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.corpus import topk as search
from rqa_ray.corpus.corpus_loss import CorpusLoss
from rqa_ray.corpus.topk import EMPTY, RunningTopK, decode_keys, encode_keys, search_block

finite = st.floats(width=32, allow_nan=False)  # infinities, subnormals and -0.0 included
TEMPERATURE = 0.5


@st.composite
def corpora(draw):
    """Questions (Q, D) and passages (N, D) of small integers with duplicates, and how they are cut into blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_questions, num_passages, dim = draw(st.integers(1, 7)), draw(st.integers(1, 60)), draw(st.integers(1, 4))
    questions = rng.integers(-2, 3, size=(num_questions, dim)).astype(np.float32)
    passages = rng.integers(-2, 3, size=(num_passages, dim)).astype(np.float32)
    passages[rng.integers(0, num_passages, size=num_passages // 3)] = passages[0]
    order = rng.permutation(num_passages)
    cuts = np.sort(rng.integers(0, num_passages + 1, size=draw(st.integers(0, 8))))
    blocks = [torch.from_numpy(block) for block in np.split(order, cuts)]
    shards = draw(st.sampled_from([1, 2, 4]))
    golds = [rng.integers(0, num_passages, size=rng.integers(0, 4)) for _ in range(num_questions)]
    k = draw(st.integers(1, 70))
    return torch.from_numpy(questions), torch.from_numpy(passages), blocks, shards, golds, k


def run(questions, passages, blocks, shards, golds, k):
    """Deals the blocks to shards, searches each alone, and merges all into the first."""
    states = [(RunningTopK(len(questions), k), CorpusLoss(golds, TEMPERATURE)) for _ in range(shards)]
    for i, block in enumerate(blocks):
        search_block(questions, passages[block], block, *states[i % shards])
    topk, loss = states[0]
    for other_topk, other_loss in states[1:]:
        topk.merge(other_topk.keys)
        loss.merge(other_loss.lse, other_loss.gold_scores)
    return topk, loss


def brute_force_ranking(questions, passages, k):
    scores = (questions.double() @ passages.double().T).tolist()
    return [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in scores]


def brute_force_loss(questions, passages, golds, in_corpus):
    """Returns the mean over questions of the mean over its golds of -log softmax, without the other golds."""
    logits = (questions.double() @ passages.double().T / TEMPERATURE).tolist()
    losses = []
    for row, gold in zip(logits, golds, strict=True):
        gold = set(gold.tolist()) & in_corpus
        others = [row[i] for i in in_corpus - gold]
        if gold:
            losses.append(np.mean([math.log(sum(math.exp(x - row[i]) for x in [row[i], *others])) for i in gold]))
    return np.mean(losses) if losses else None


@settings(deadline=None)
@given(st.lists(st.tuples(finite, st.integers(0, 2**32 - 1)), min_size=1, max_size=30))
def test_keys_sort_by_score_down_then_position_up_and_decode_to_what_they_were(pairs):
    scores = torch.tensor([[score for score, _ in pairs]])
    positions = torch.tensor([position for _, position in pairs])
    keys = encode_keys(scores, positions)
    assert (keys > EMPTY).all()
    decoded_scores, decoded_positions = decode_keys(keys)
    assert torch.equal(decoded_scores, scores) and torch.equal(decoded_positions[0], positions)
    by_key = sorted(range(len(pairs)), key=lambda i: -int(keys[0, i]))
    by_rule = sorted(range(len(pairs)), key=lambda i: (-pairs[i][0], pairs[i][1]))
    assert [pairs[i] for i in by_key] == [pairs[i] for i in by_rule]


def test_minus_zero_ties_with_zero():
    scores, positions = torch.tensor([[0.0, -0.0, -1.0, -0.0]]), torch.tensor([9, 2, 1, 5])
    assert encode_keys(scores, positions).argsort(descending=True).tolist() == [[1, 3, 0, 2]]
    for k in (1, 2, 3, 4):  # below 4 the floats are selected before keys are made
        topk = RunningTopK(1, k)
        topk.add(scores, positions)
        assert topk.result()[1].tolist() == [[2, 5, 9, 1][:k]]


@pytest.mark.parametrize("k", [2, 50])
@pytest.mark.parametrize("nan_column", [0, 13, 39])
def test_a_nan_score_is_refused_wherever_it_stands(k, nan_column):
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    scores[1, nan_column] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        RunningTopK(3, k).add(scores, torch.arange(40))


def test_scores_of_half_precision_are_refused():
    with pytest.raises(TypeError, match="float32"):
        RunningTopK(1, 1).add(torch.zeros(1, 3, dtype=torch.bfloat16), torch.arange(3))


@settings(deadline=None)
@given(corpora(), st.sampled_from([1, 50, search.SCORES_AT_ONCE]))
def test_the_ranking_is_the_sorted_corpus_for_any_blocks_slices_and_shards(case, scores_at_once):
    questions, passages, *_, k = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SCORES_AT_ONCE", scores_at_once)
        scores, positions = run(*case)[0].result()
    assert positions.tolist() == brute_force_ranking(questions, passages, k)
    assert torch.equal(scores, (questions @ passages.T).gather(1, positions))


def test_ties_at_the_cut_go_to_the_first_in_document_order():
    passages = torch.ones(300, 2)
    passages[200] = 2
    for block in (1, 7, 64, 300):
        topk = RunningTopK(2, 5)
        for positions in reversed(torch.randperm(300, generator=torch.Generator().manual_seed(1)).split(block)):
            search_block(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), passages[positions], positions, topk)
        assert topk.result()[1].tolist() == [[200, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
        assert (topk.keys[:, :-1] > topk.keys[:, 1:]).all()


def test_duplicates_among_real_valued_scores_rank_by_document_order():
    scores = torch.randn(40, 150, generator=torch.Generator().manual_seed(0)).repeat(1, 4)
    rankings = []
    for block in (9, 256, 600):
        topk = RunningTopK(40, 41)  # cuts through a group of four
        for positions in reversed(torch.arange(600).split(block)):
            topk.add(scores[:, positions], positions)
        rankings.append(topk.result()[1])
        groups = rankings[-1][:, :40].unflatten(1, (10, 4))
        assert torch.equal(groups, groups[..., :1] + torch.arange(4) * 150)
    assert all(torch.equal(ranking, rankings[0]) for ranking in rankings)


@pytest.fixture(params=[False, True], ids=["fp32 products", "bf16 products"])
def products(request, monkeypatch):
    monkeypatch.setattr(search, "_bf16_is_fast", lambda device: request.param)


def exact_ranking(questions, passages, k):
    """Returns (-score, position) from the dot product of every single pair."""
    scores = (questions.double()[:, None] * passages.double()).sum(2).float()
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order


@pytest.mark.parametrize("dimensions", [1, 37, 384])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_real_embeddings_rank_the_same_to_the_bit_for_any_blocks_and_shards(products, dimensions, scale):
    generator = torch.Generator().manual_seed(dimensions)
    questions = torch.randn(13, dimensions, generator=generator) * scale
    passages = torch.randn(700, dimensions, generator=generator)
    passages[torch.randperm(700, generator=generator)[:300]] = passages[5].clone()  # ties, most of them around the cut
    passages[650:] = passages[600:650] * (1 + 2**-20)  # nearly ties
    expected = exact_ranking(questions, passages, 100)
    for block, shards in ((700, 1), (1, 2), (7, 4), (64, 2), (128, 1), (350, 4)):
        states = [RunningTopK(13, 100) for _ in range(shards)]
        for i, positions in enumerate(torch.randperm(700, generator=generator).split(block)):
            search_block(questions, passages[positions], positions, states[i % shards])
        for other in states[1:]:
            states[0].merge(other.keys)
        found = states[0].result()
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("descending", [False, True])
def test_a_corpus_that_gets_better_and_better_is_ranked_right(products, descending):
    questions = torch.nn.functional.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    passages = torch.randn(3000, 64, generator=torch.Generator().manual_seed(1))
    passages = passages[(passages @ questions[0]).argsort(descending=descending)]
    topk = RunningTopK(3, 10)
    for positions in torch.arange(3000).split(250):
        search_block(questions, passages[positions], positions, topk)
    assert torch.equal(topk.result()[1], exact_ranking(questions, passages, 10)[1])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_that_take_turns_at_blocks_find_the_same(products, num_threads):
    generator = torch.Generator().manual_seed(0)
    questions, passages = torch.randn(9, 32, generator=generator), torch.randn(500, 32, generator=generator)
    passages[200:300] = passages[0].clone()
    blocks = zip(torch.arange(500).split(30), passages.split(30), strict=True)
    before = torch.get_num_threads()
    found = search.search_blocks(questions, blocks, 50, num_threads)
    expected = exact_ranking(questions, passages, 50)
    assert torch.equal(found.result()[1], expected[1]) and torch.get_num_threads() == before


def test_what_is_wrong_in_a_thread_is_raised(products):
    blocks = [(torch.arange(5), torch.full((5, 4), torch.nan))]
    with pytest.raises(ValueError, match="not finite"):
        search.search_blocks(torch.ones(2, 4), blocks, 3, 2)


def test_a_corpus_of_one_vector_ranks_in_document_order(products):
    topk = RunningTopK(2, 100)
    for positions in reversed(torch.arange(2000).split(300)):
        search_block(torch.ones(2, 384) / 7, torch.full((len(positions), 384), 0.3), positions, topk)
    assert torch.equal(topk.result()[1], torch.arange(100).expand(2, -1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["questions", "passages"])
def test_an_embedding_that_is_not_finite_is_refused(products, bad, where):
    embeddings = {"questions": torch.randn(4, 8), "passages": torch.randn(500, 8)}
    embeddings[where][3, 2] = bad
    topk = RunningTopK(4, 5)
    with pytest.raises(ValueError, match="not finite"):
        search_block(embeddings["questions"], embeddings["passages"], torch.arange(500), topk)


def test_k_beyond_the_corpus_gives_the_whole_corpus():
    topk = RunningTopK(2, 100)
    assert topk.result()[0].shape == (2, 0)
    search_block(torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [-5.0]]), torch.tensor([0, 1]), topk)
    scores, positions = topk.result()
    assert scores.tolist() == [[3.0, -5.0], [5.0, -3.0]] and positions.tolist() == [[0, 1], [1, 0]]


def test_an_empty_block_or_an_empty_shard_changes_nothing():
    questions, golds = torch.ones(2, 3), [np.array([0]), np.array([1])]
    topk, loss = RunningTopK(2, 4), CorpusLoss(golds, TEMPERATURE)
    search_block(questions, torch.eye(3), torch.arange(3), topk, loss)
    keys, value = topk.keys.clone(), loss.result()
    search_block(questions, torch.empty(0, 3), torch.empty(0, dtype=torch.int64), topk, loss)
    topk.merge(RunningTopK(2, 4).keys)
    empty = CorpusLoss(golds, TEMPERATURE)
    loss.merge(empty.lse, empty.gold_scores)
    assert torch.equal(topk.keys, keys) and loss.result() == value


@settings(deadline=None)
@given(corpora(), st.sampled_from([1, 50, search.SCORES_AT_ONCE]))
def test_the_loss_is_the_cross_entropy_with_other_golds_masked_for_any_blocks_and_shards(case, scores_at_once):
    questions, passages, _, _, golds, _ = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SCORES_AT_ONCE", scores_at_once)
        value = run(*case)[1].result()
    expected = brute_force_loss(questions, passages, golds, set(range(len(passages))))
    assert value == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-6))


@settings(deadline=None)
@given(corpora())
def test_a_gold_that_is_missing_from_the_corpus_does_not_count(case):
    questions, passages, blocks, shards, golds, k = case
    kept = [block[block % 3 != 0] for block in blocks]
    in_corpus = {i for block in kept for i in block.tolist()}
    value = run(questions, passages, kept, shards, golds, k)[1].result()
    expected = brute_force_loss(questions, passages, golds, in_corpus)
    assert value == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-6))


def test_the_loss_is_none_when_no_question_has_a_gold_in_the_corpus():
    loss = CorpusLoss([np.array([5]), []], TEMPERATURE)
    search_block(torch.ones(2, 3), torch.eye(3), torch.arange(3), RunningTopK(2, 1), loss)
    assert loss.result() is None


@settings(deadline=None)
@given(corpora(), st.integers(0, 7))
def test_the_loss_of_a_part_of_the_questions_is_the_loss_of_these_alone(case, cut):
    questions, passages, _, _, golds, _ = case
    loss = run(*case)[1]
    for rows in (slice(0, cut), slice(cut, len(questions))):
        expected = brute_force_loss(questions[rows], passages, golds[rows], set(range(len(passages))))
        value = loss.result(rows)
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-6))


def test_the_loss_is_zero_when_the_corpus_is_the_golds():
    loss = CorpusLoss([[0, 1, 1]], TEMPERATURE)
    search_block(torch.ones(1, 2), torch.eye(2), torch.arange(2), RunningTopK(1, 1), loss)
    assert loss.result() == 0.0


def test_the_loss_stays_exact_at_low_temperatures_and_over_many_blocks():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(2020, 16, generator=generator), dim=1)
    questions, passages = embeddings[:20], embeddings[20:]
    logits = questions.double() @ passages.double().T / 0.001
    expected = float(torch.nn.functional.cross_entropy(logits, torch.arange(20) * 100))
    assert math.isfinite(expected) and expected > 1
    for block in (70, 2000):
        loss, topk = CorpusLoss([[i * 100] for i in range(20)], 0.001), RunningTopK(20, 1)
        for positions in torch.arange(2000).split(block):
            search_block(questions, passages[positions], positions, topk, loss)
        assert loss.result() == pytest.approx(expected, rel=1e-6)
