"""The rows of a search: which trial is best, and how rows are written and shown."""

import csv

from rqa_ray.reports.trials import (
    DIVERGED,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    Trial,
    headline,
    ranked,
    read_trial,
    table_lines,
    write_trials,
)

RECALL, LOSS = "eval_retr/document_recall/recall4", "eval_loss"
NAMES = ["learning_rate", "global_batch_size"]


def trial(number: int, state: str, curve: list[tuple[int, float]], **more) -> Trial:
    values = {"learning_rate": 1.2345e-5 * number, "global_batch_size": 16}
    pairs = curve[-1][0] if curve else 0
    return Trial(number, f"t_{number}", values, state, pairs, curve, pairs // 16, 61.0, **more)


TRIALS = [
    trial(1, FINISHED, [(0, 0.5), (160, 0.6), (320, 0.55)]),
    trial(2, STOPPED, [(0, 0.5), (80, 0.9)]),
    trial(3, FINISHED, [(0, 0.5), (160, 0.6), (320, 0.6)]),
    trial(4, RUNNING, [(0, 0.5), (80, 0.4)]),
    trial(5, FAILED, [], problem="CUDA out of memory"),
    trial(6, DIVERGED, [(0, 0.5), (80, 0.2)], problem="step 9: the loss is not finite"),
    trial(7, WAITING, []),
]


def test_the_best_has_finished_and_of_equals_is_the_earliest():
    assert [one.number for one in ranked(TRIALS, RECALL)] == [1, 3, 2, 4, 6]
    assert [one.number for one in ranked(TRIALS, LOSS)][:2] == [1, 3], "a loss is better when it is lower"
    assert TRIALS[0].best(RECALL) == (160, 0.6)


def test_trials_csv_has_a_row_for_each_with_the_full_number(tmp_path):
    write_trials(tmp_path, TRIALS, NAMES, RECALL)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7"]
    assert float(rows[0][RECALL]) == 0.6 and rows[0]["best_step"] == "10" and rows[0]["pairs"] == "320"
    assert float(rows[2]["learning_rate"]) == TRIALS[2].values["learning_rate"]
    assert rows[4][RECALL] == "" and rows[4]["problem"] == "CUDA out of memory"


def test_the_table_fits_80_columns_with_what_runs_first_and_a_star_at_the_best():
    lines = table_lines(TRIALS, [*NAMES, "temperature", "hard_neg_ratio", "pooling_type"], RECALL, 320)
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[0] == "4" and "running" in lines[1]
    assert [line.split()[0] for line in lines if line.endswith("*")] == ["1"]
    assert lines[-2:] == ["trial 6 diverged: step 9: the loss is not finite", "trial 5 failed: CUDA out of memory"]
    assert len(table_lines(TRIALS * 20, NAMES, RECALL, 320)) < 30


def test_the_headline_counts_and_says_how_long_it_may_take():
    line = headline(TRIALS, 8, RECALL, 125.0)
    assert line == "5 of 8 trials ended, 1 running, best recall4 0.9000, at most 2:05 left" and len(line) <= 80


def test_a_trial_is_read_from_what_it_reported_last():
    report = {"evaluation": 4, "pairs": 320, "step": 20, "curve": [[0, 0.5], [320, 0.6]], "time_total_s": 9.0}
    assert read_trial(1, "t", {}, FINISHED, report, 4).state == FINISHED
    assert read_trial(1, "t", {}, FINISHED, report, 8).state == STOPPED
    assert read_trial(1, "t", {}, RUNNING, report, 4).state == RUNNING
    lost = read_trial(1, "t", {}, FINISHED, report | {"failure": "the loss is not finite"}, 8)
    assert (lost.state, lost.problem) == (DIVERGED, "the loss is not finite")
    assert read_trial(1, "t", {}, FAILED, None, 4, "Traceback\n  x\nValueError: y").problem == "ValueError: y"
