"""An evaluation is the same after saving and loading, and its metrics have full names."""

import io

import numpy as np

from rqa_ray.evaluation.results import Evaluation, OfBm25, SplitResult


def result(value: float) -> SplitResult:
    return SplitResult({"loss": value}, np.full((2, 3), value, np.float32), np.arange(6).reshape(2, 3))


FOUND = Evaluation({"eval": result(0.5), "test": result(0.25)})
FOUND.splits["test"].asked = "questions of test"
FOUND.splits["test"].of_bm25 = OfBm25(np.arange(4).reshape(2, 2), np.ones((2, 2)), np.zeros(2), np.ones(2))


def test_metrics_of_all_splits_have_full_names_and_those_of_one_split_only_its_own() -> None:
    assert FOUND.metrics == {"eval_loss": 0.5, "test_loss": 0.25}
    assert FOUND.metrics_of("test") == {"test_loss": 0.25} and FOUND.metrics_of("train") == {}


def test_what_was_saved_is_loaded_again() -> None:
    files = FOUND.files("before")
    again = Evaluation.load("before", lambda name: io.BytesIO(files[name]))
    assert again.metrics == FOUND.metrics and again.splits.keys() == FOUND.splits.keys()
    for split, found in again.splits.items():
        np.testing.assert_array_equal(found.scores, FOUND.splits[split].scores)
        np.testing.assert_array_equal(found.positions, FOUND.splits[split].positions)
        assert found.scores.dtype == np.float32 and found.asked == FOUND.splits[split].asked
    assert again.splits["eval"].of_bm25 is None
    np.testing.assert_equal(vars(again.splits["test"].of_bm25), vars(FOUND.splits["test"].of_bm25))


def test_results_of_other_questions_are_left_out_and_without_those_of_eval_there_is_nothing() -> None:
    asked = {"eval": "", "test": "questions of test"}
    assert FOUND.of(asked) == FOUND
    for other in ({"eval": "", "test": "others"}, {"eval": ""}):
        assert FOUND.of(other) == Evaluation({"eval": FOUND.splits["eval"]})
    assert FOUND.of(asked | {"eval": "others"}) is None and Evaluation().of(asked) is None


def test_the_metrics_are_written_last_and_nothing_found_is_saved_too() -> None:
    assert list(FOUND.files("evaluation")) == ["evaluation.npz", "evaluation.json"]
    files = Evaluation().files("evaluation")
    assert not Evaluation.load("evaluation", lambda name: io.BytesIO(files[name]))
