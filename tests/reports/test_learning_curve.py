"""The learning curve says a gain only where chance does not explain it."""

import numpy as np
import pytest

from rqa_ray.reports.learning_curve import LearningCurve, by_question_name
from rqa_ray.reports.search_page import page
from rqa_ray.reports.trials import FAILED, FINISHED, Trial, read_trial

RECALL = "eval_retr/document_recall/recall4"
NUMBER = 80  # questions
CLUSTERS = np.arange(NUMBER)


def trial(share: float, hits: int, number: int = 1, state: str = FINISHED, first: int = 0, **values) -> Trial:
    """A trial that finds the golds of `hits` questions, from `first` on."""
    return Trial(
        number,
        f"t{number}",
        {"train_share": share, **values},
        state,
        96,
        [(0, 0.1), (96, 0.5)],
        12,
        9.0,
        train_pairs=round(560 * share),
        by_question=[float(first <= question < first + hits) for question in range(NUMBER)],
    )


def curve(*trials: Trial) -> LearningCurve:
    found = LearningCurve.of(trials, RECALL, CLUSTERS)
    assert found
    return found


def test_a_gain_beyond_chance_is_said_with_its_interval():
    first, second, *_ = curve(trial(1, 60), trial(0.25, 20), trial(0.5, 40)).sentences
    said = "2 times the labels, from 280 to 560 training pairs (train_share 0.5 to 1), gained recall@4: +25.0 points"
    assert first.startswith(said) and first.endswith("more labels may help.")
    assert second.startswith(
        "4 times the labels, from 140 to 560 training pairs (train_share 0.25 to 1), gained recall@4:"
    )


@pytest.mark.parametrize("hits", [40, 41, 42, 43, 38])
def test_noise_is_never_called_a_gain(hits):
    lines = curve(trial(0.5, 40), trial(1, hits, first=40 - hits // 2)).sentences
    points = 100 * (hits - 40) / NUMBER
    assert f"no gain of recall@4 is visible with 80 eval questions: {points:+.1f} points, 95% interval" in lines[0]
    assert "may help" not in "".join(lines)


def test_a_loss_beyond_chance_is_said_too():
    assert "lost recall@4: -25.0 points" in curve(trial(0.5, 40), trial(1, 20)).sentences[0]


def test_runs_that_differ_in_their_seed_are_averaged_and_other_arguments_take_their_best():
    trials = [
        trial(0.5, 20, 1, seed=1, learning_rate=1e-4),
        trial(0.5, 40, 2, seed=2, learning_rate=1e-4),
        trial(0.5, 10, 3, seed=1, learning_rate=1e-3),
        trial(1, 50, 4, seed=1, learning_rate=1e-4),
        trial(1, 60, 5, seed=1, learning_rate=1e-3),
        trial(1, 10, 6, FAILED, seed=2, learning_rate=1e-3),
    ]
    points = curve(*trials).points
    assert [(point.share, point.pairs, point.runs) for point in points] == [(0.5, 280, 2), (1, 560, 1)]
    assert [point.values.mean() for point in points] == [30 / NUMBER, 60 / NUMBER]
    assert all(point.low < point.values.mean() < point.high for point in points)
    assert "leave out the noise of training" in curve(*trials).sentences[-1]
    averaged = curve(*trials[:2], trials[3], trial(1, 50, 7, seed=2, learning_rate=1e-4))
    assert "leave out" not in "".join(averaged.sentences)


def test_one_share_is_no_curve():
    assert LearningCurve.of([trial(1, 9), trial(1, 8, seed=2), trial(0.5, 9, state=FAILED)], RECALL, CLUSTERS) is None
    assert LearningCurve.of([], RECALL, CLUSTERS) is None


def test_a_loss_has_no_value_for_each_question_so_ndcg_takes_its_place():
    assert by_question_name("eval_loss") == "retr/document_ndcg/ndcg10"
    assert by_question_name(RECALL) == "retr/document_recall/recall4"


def test_the_page_draws_the_curve_beside_its_sentences():
    found = curve(trial(0.25, 20), trial(0.5, 30), trial(1, 45))
    assert found.svg().count(b"<circle") == 3 and found.svg().count(b"interval after-line") == 3
    text = page("search", [trial(1, 45)], ["train_share"], RECALL, trial(1, 45), None, found)
    assert "<h2>Would more labels help?</h2>" in text and "data:image/svg+xml;base64," in text
    assert "<td>0.25</td><td>140</td><td>1</td><td>0.250</td>" in text
    assert "http:" not in text and "https:" not in text
    assert "Would more labels" not in page("search", [trial(1, 45)], ["train_share"], RECALL, trial(1, 45), None)


def test_a_trial_reports_its_pairs_and_the_values_of_its_questions():
    found = read_trial(1, "t", {}, FINISHED, {"evaluation": 4, "train_pairs": 140, "by_question": [0.5, 1.0]}, 4)
    assert (found.train_pairs, found.by_question) == (140, [0.5, 1.0])
