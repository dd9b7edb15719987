"""What a program and a notebook get of a search: all trials with their best metrics, the winner, and its model."""

import json

from rqa_ray.job_output import plain
from rqa_ray.reports.trials import FAILED, FINISHED, Trial
from rqa_ray.training.result import TrainResult
from rqa_ray.tuning.result import TuneResult

METRIC = "eval_retr/document_recall/recall4"
MODEL = TrainResult(
    output_dir="out/<b>",
    best_step=4,
    chosen="step 4",
    before={METRIC: 0.5, "eval_loss": float("nan")},
    metrics={METRIC: 0.75},
    before_intervals={METRIC: (0.4, 0.6)},
    intervals={METRIC: (0.65, 0.85)},
    weaknesses=[],
    summary=["a line"],
    files=["out/model.safetensors"],
)
TRIALS = [
    Trial(1, "a", {"learning_rate": 1e-4}, FINISHED, 32, [(0, 0.5), (32, 0.75)], 4),
    Trial(2, "b", {"learning_rate": 1.0}, FAILED, problem="no memory"),
]
FOUND = TuneResult(MODEL, METRIC, TRIALS[0], TRIALS)


def test_a_program_gets_all_trials_with_their_best_metrics_the_winner_and_its_model():
    found = json.loads(json.dumps(plain(FOUND), allow_nan=False))
    assert (found["metric"], found["winner"]) == (METRIC, 1)
    assert [(trial["number"], trial["values"]["learning_rate"], trial["best"]) for trial in found["trials"]] == [
        (1, 1e-4, 0.75),
        (2, 1.0, None),
    ]
    assert found["model"]["intervals"] == {METRIC: [0.65, 0.85]} and found["model"]["before"]["eval_loss"] is None
    assert FOUND.describe() == "\na line"


def test_a_notebook_shows_the_winner_first_and_its_metrics_before_and_after():
    page = FOUND._repr_html_()
    assert "<tr><td>1</td><td>0.0001</td><td>0.75</td><td>finished</td></tr>" in page
    row = "<tr><td>eval recall@4</td><td>0.5</td><td>0.75</td><td>0.65 to 0.85</td></tr>"
    assert row in page and page.endswith("<p>out/&lt;b&gt;</p>")
