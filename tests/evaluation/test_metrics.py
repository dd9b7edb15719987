"""The metrics compared with their definitions, written as plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data.golds import Golds
from rqa_ray.evaluation.metrics import (
    greater_is_better,
    metric_names,
    question_metrics,
    retrieval_metrics,
)


@st.composite
def rankings(draw, max_golds=12, max_retrieved=120):
    """Rankings of passages 0 to N - 1 (some only of a part), with golds in any order and partly outside the corpus."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_questions, num_passages = draw(st.integers(1, 6)), draw(st.integers(1, 150))
    num_retrieved = min(num_passages, draw(st.integers(1, max_retrieved)))
    ranked = np.stack([rng.permutation(num_passages)[:num_retrieved] for _ in range(num_questions)])
    spread = draw(st.integers(1, num_passages + 2))
    golds = [
        rng.choice(spread, size=rng.integers(1, min(max_golds, spread) + 1), replace=False)
        for _ in range(num_questions)
    ]
    scale = draw(st.sampled_from([1, -(2**55)]))  # ids are 64-bit hashes: large and of either sign
    golds = Golds.of_lists([gold.astype(np.int64) * scale for gold in golds])
    golds.grades = rng.integers(1, 4, len(golds.ids)).astype(float) if draw(st.booleans()) else None
    return ranked.astype(np.int64) * scale, golds


def brute_force(ranked_ids, gold_ids):
    totals = dict.fromkeys(retrieval_metrics(ranked_ids, gold_ids), 0.0)
    for ranked, golds in zip(ranked_ids.tolist(), map(gold_ids.grades_of, range(len(gold_ids))), strict=True):
        for k in (1, 4, 10, 100):
            totals[f"retr/document_recall/recall{k}"] += all(gold in ranked[:k] for gold in golds)
        gain = sum(golds.get(passage, 0) / math.log2(i + 2) for i, passage in enumerate(ranked[:10]))
        ideal = sum(grade / math.log2(i + 2) for i, grade in enumerate(sorted(golds.values(), reverse=True)[:10]))
        totals["retr/document_ndcg/ndcg10"] += gain / ideal
        first = [i for i, passage in enumerate(ranked[:10]) if passage in golds][:1]
        totals["retr/document_mrr/mrr10"] += 1 / (first[0] + 1) if first else 0
        totals["retr/document_accuracy/accuracy"] += np.mean([passage in golds for passage in ranked[:4]])
    return {name: total / len(ranked_ids) for name, total in totals.items()}


@settings(deadline=None)
@given(rankings())
def test_every_metric_equals_its_definition(case):
    metrics = retrieval_metrics(*case)
    assert metrics == pytest.approx(brute_force(*case), abs=1e-12)
    assert all(type(value) is float and 0 <= value <= 1 + 1e-12 for value in metrics.values())


@settings(deadline=None)
@given(rankings())
def test_the_metrics_of_a_question_are_those_of_it_alone(case):
    ranked_ids, gold_ids = case
    values = question_metrics(ranked_ids, gold_ids)
    for row in range(len(ranked_ids)):
        alone = retrieval_metrics(ranked_ids[row : row + 1], gold_ids.select(np.array([row])))
        assert {name: part[row] for name, part in values.items()} == pytest.approx(alone)


@settings(deadline=None)
@given(rankings())
def test_ndcg_with_grades_is_that_of_pytrec_eval(case):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked_ids, gold_ids = case
    names = [str(row) for row in range(len(ranked_ids))]
    judged = {
        name: {str(passage): int(grade) for passage, grade in gold_ids.grades_of(row).items()}
        for row, name in enumerate(names)
    }
    # It breaks ties by name: descending numbers in place of scores keep our order.
    run = {
        name: {str(one): 200.0 - place for place, one in enumerate(ranked.tolist())}
        for name, ranked in zip(names, ranked_ids, strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    expected = [found[name]["ndcg_cut_10"] for name in names]
    assert question_metrics(ranked_ids, gold_ids)["retr/document_ndcg/ndcg10"] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(rankings(max_golds=1))
def test_with_one_gold_strict_recall_is_plain_recall(case):
    ranked_ids, gold_ids = case
    metrics = retrieval_metrics(ranked_ids, gold_ids)
    for k in (1, 4, 10, 100):
        plain = np.mean([np.isin(gold, ranked[:k]).mean() for ranked, gold in zip(ranked_ids, gold_ids, strict=True)])
        assert metrics[f"retr/document_recall/recall{k}"] == pytest.approx(plain)


def test_recall_asks_for_all_golds_and_mrr_for_the_first():
    metrics = retrieval_metrics(np.array([[7, 8, 9, 5, 6]]), [[8, 6]])
    assert metrics["retr/document_recall/recall4"] == 0.0
    assert metrics["retr/document_recall/recall10"] == 1.0
    assert metrics["retr/document_mrr/mrr10"] == 0.5
    assert metrics["retr/document_accuracy/accuracy"] == 0.25


def test_accuracy_of_a_corpus_below_four_passages_is_over_what_was_retrieved():
    assert retrieval_metrics(np.array([[3, 1]]), [[1]])["retr/document_accuracy/accuracy"] == 0.5


def test_a_repeated_gold_counts_once():
    ranked = np.array([[4, 2, 3, 1, 0]])
    assert retrieval_metrics(ranked, [[2, 2, 1]]) == retrieval_metrics(ranked, [np.array([1, 2])])


@pytest.mark.parametrize(
    ("ranked", "golds", "message"),
    [
        (np.array([[1], [2]]), [[1], []], "Question 1 has no gold"),
        (np.array([[1], [2]]), [[1]], "gold ids of 1 questions"),
        (np.empty((0, 5), dtype=np.int64), [], "Nothing to score"),
        (np.empty((1, 0), dtype=np.int64), [[1]], "Nothing to score"),
    ],
)
def test_what_has_no_defined_metric_is_refused(ranked, golds, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(ranked, golds)


def test_names_carry_the_split_and_cover_what_is_computed():
    names = metric_names("eval")
    assert "eval_retr/document_recall/recall4" in names and "eval_loss" in names
    assert "eval_retr/latency/avg_latency" in names and len(set(names)) == len(names) == 9
    computed = retrieval_metrics(np.array([[1]]), [[1]])
    assert {f"test_{name}" for name in computed} < set(metric_names("test"))


def test_only_loss_and_latency_are_better_when_lower():
    lower = [name for name in metric_names("eval") if not greater_is_better(name)]
    assert lower == ["eval_retr/latency/avg_latency", "eval_loss"]
    assert not greater_is_better("loss")


@settings(deadline=None)
@given(st.integers(1, 400))
def test_the_number_of_pairs_handled_at_once_does_not_matter(pairs_at_once):
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(50) for _ in range(100)])
    golds = [rng.choice(50, size=3, replace=False) for _ in range(100)]
    whole = retrieval_metrics(ranked, golds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rqa_ray.evaluation.metrics.PAIRS_AT_ONCE", pairs_at_once)
        assert retrieval_metrics(ranked, golds) == whole
