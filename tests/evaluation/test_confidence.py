"""Intervals and p-values compared with brute force, and with how often they should be right."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa_ray.evaluation import confidence
from rqa_ray.evaluation.confidence import (
    Clusters,
    effective_number,
    gold_clusters,
    intervals,
    paired_difference,
    pooled_difference,
)

golds = st.lists(st.lists(st.integers(-20, 20), min_size=1, max_size=3), min_size=1, max_size=25)


@given(golds)
def test_questions_are_in_one_cluster_where_shared_golds_link_them(gold_ids):
    clusters = gold_clusters(gold_ids)
    linked = {number: {number} for number in range(len(gold_ids))}
    for a, b in itertools.combinations(range(len(gold_ids)), 2):
        if set(gold_ids[a]) & set(gold_ids[b]):
            together = linked[a] | linked[b]
            linked |= {number: together for number in together}
    for a, b in itertools.combinations(range(len(gold_ids)), 2):
        assert (clusters[a] == clusters[b]) == (b in linked[a])
    assert sorted(set(clusters.tolist())) == list(range(clusters.max() + 1))


def test_a_long_chain_of_shared_golds_is_one_cluster():
    assert set(gold_clusters([[number, number + 1] for number in reversed(range(300))])) == {0}


def test_the_questions_of_a_source_document_are_one_cluster():
    golds = [[number] for number in range(40)]
    clusters = Clusters.of(golds, [[number // 2] for number in range(40)])
    assert clusters.labels.tolist() == [number // 2 for number in range(40)] and clusters.note == ""
    assert effective_number(clusters.labels) == 20


@pytest.mark.parametrize("sources", [[7] * 40, [7] * 35 + [1, 2, 3, 4, 5]])
def test_where_a_few_documents_have_most_questions_only_shared_golds_make_clusters_which_is_said(sources):
    golds = [[number // 2] for number in range(40)]
    clusters = Clusters.of(golds, [[source] for source in sources])
    assert clusters.labels.tolist() == [number // 2 for number in range(40)]
    number = len(set(sources))
    assert clusters.note == f" from only {number} source document{'s' * (number > 1)}, so clustered by gold"


def test_a_handful_of_questions_from_as_many_documents_stay_clustered_by_source():
    assert Clusters.of([[1], [2], [3]], [[1], [2], [3]]).by_source


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = intervals({"x": generator.random(80) < 0.6}, np.arange(80))["x"]
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_copies_of_a_question_make_the_interval_no_narrower():
    hits = (np.arange(50) % 3 > 0) * 1.0
    alone = intervals({"x": hits}, np.arange(50))["x"]
    copied = intervals({"x": hits.repeat(20)}, np.arange(50).repeat(20))["x"]
    as_if_independent = intervals({"x": hits.repeat(20)}, np.arange(1000))["x"]
    assert copied == pytest.approx(alone)
    assert np.ptp(as_if_independent) < np.ptp(alone) / 3


def test_intervals_are_the_same_however_many_resamples_are_held_at_once(monkeypatch):
    values, clusters = {"x": np.arange(30.0) % 7, "y": np.arange(30.0)}, np.arange(30) // 2
    whole = intervals(values, clusters)
    monkeypatch.setattr(confidence, "CELLS_AT_ONCE", 100)
    assert intervals(values, clusters) == whole
    assert intervals({"x": values["x"]}, clusters)["x"] == whole["x"]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=1, max_size=9))
def test_few_clusters_have_the_exact_p_value(pairs):
    gains, clusters = np.array([gain for gain, _ in pairs]), np.unique([c for _, c in pairs], return_inverse=True)[1]
    sums = np.bincount(clusters, gains)
    extreme = [abs(np.dot(signs, sums)) >= abs(sums.sum()) for signs in itertools.product((1, -1), repeat=len(sums))]
    found = paired_difference(np.zeros(len(gains)), gains, clusters)
    assert found.p_value == pytest.approx(np.mean(extreme)) and found.mean == pytest.approx(gains.mean())


def test_many_clusters_have_nearly_the_p_value_of_the_binomial():
    gains = np.array([1.0] * 40 + [-1.0] * 22 + [0.0] * 100)
    tail = sum(_binomials(62)[40:]) / 2**62
    found = paired_difference(np.zeros(162), gains, np.arange(162))
    assert found.p_value == pytest.approx(2 * tail, rel=0.2)
    back = paired_difference(gains, np.zeros(162), np.arange(162))
    assert back.mean == -found.mean and back.p_value == pytest.approx(found.p_value)


def _binomials(n: int) -> list[int]:
    row = [1]
    for k in range(n):
        row.append(row[-1] * (n - k) // (k + 1))
    return row


def test_a_chance_difference_is_seldom_called_significant():
    generator = np.random.default_rng(1)
    rejected = 0
    for _ in range(200):
        before, after = (generator.random(60) < 0.5 for _ in range(2))
        rejected += paired_difference(before, after, np.arange(60)).p_value < 0.05
    assert rejected / 200 < 0.09


def test_runs_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="paired"):
        paired_difference(np.ones(3), np.ones(4), np.arange(3))


def test_a_difference_reads_as_points_with_its_interval():
    found = confidence.Difference(0.12, 0.04, 0.2, 0.0041)
    assert found.describe() == "+12.0 points, 95% interval +4.0 to +20.0, p = 0.0041"


def test_pooled_sets_count_alike_and_one_set_is_the_paired_test():
    generator = np.random.default_rng(1)
    small, large = ((generator.random(size), generator.random(size), np.arange(size)) for size in (20, 400))
    alone, paired = pooled_difference([small]), paired_difference(*small)
    assert (alone.mean, alone.low, alone.high) == pytest.approx((paired.mean, paired.low, paired.high))
    assert alone.p_value == pytest.approx(paired.p_value, abs=0.02)
    means = [after.mean() - before.mean() for before, after, _ in (small, large)]
    both = pooled_difference([small, large])
    assert both.mean == pytest.approx(np.mean(means)) and both.low < both.mean < both.high


def test_a_pooled_test_without_a_difference_is_wrong_as_often_as_it_says():
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(60):
        parts = [(generator.random(size), generator.random(size), np.arange(size) // 2) for size in (40, 100)]
        wrong += pooled_difference(parts).p_value < 0.05
    assert wrong / 60 <= 0.12


@pytest.mark.parametrize(("low", "p_value"), [(-0.01, 0.03), (0.01, 0.05)])
def test_a_difference_that_may_be_chance_is_said_to_be_not_beyond_noise(low, p_value):
    assert confidence.Difference(0.03, low, 0.07, p_value).describe().endswith(f"p = {p_value}: not beyond noise")
    assert confidence.Difference(-0.03, -0.07, -low, p_value).describe().endswith(": not beyond noise")
    assert not confidence.Difference(-0.03, -0.07, -0.01, 0.02).describe().endswith("noise")
