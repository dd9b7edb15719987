"""The files in output_dir are complete or absent, and other programs can read them."""

import json
from dataclasses import replace

import numpy as np

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, METRIC_NAMES, name_at
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.places import read_json
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.finish import Choice, Score
from rqa_ray.training.job import parse_job
from rqa_ray.training.summary import ModelState, achieved, compare, last_lines, write_bad_records, write_files
from tests.builders import asked_questions, documents

JOB = parse_job("--model_name_or_path m --output_dir out --demo_size 9".split())


def state(step: int, positions: list[list[int]], value: float, split: str = "eval") -> ModelState:
    scores = np.linspace(1, 0, len(positions[0]), dtype=np.float32)[None].repeat(len(positions), axis=0)
    found = SplitResult(dict.fromkeys(METRIC_NAMES, value), scores, np.array(positions))
    return ModelState(step, Evaluation({split: found}))


def compared(*states: ModelState) -> dict[str, Comparison]:
    rankings = (of.evaluation.splits["eval"].positions for of in states)
    return {"eval": Comparison.of(asked_questions(), documents(), *rankings)}


BEFORE = state(0, [[4, 3, 1, 2, 0], [0, 2, 4, 1, 3], [4, 3, 1, 0, 2]], 0.25)
BEST = state(8, [[0, 2, 1, 3, 4], [3, 1, 4, 2, 0], [2, 0, 1, 3, 4]], 0.75)


METRIC = "eval_retr/document_recall/recall4"
MIXTURE = Candidate((8,), 0.7)
SCORES = [
    Score(BASE, 0.25, 0.2),
    Score(MIXTURE, 0.75, 0.7),
    Score(Candidate((8,)), 0.8, 0.1, "nDCG@10 is -10.0 points"),
]
KEPT, CHOSEN = Choice(BASE, BEFORE.evaluation, METRIC, SCORES[:1]), Choice(MIXTURE, BEST.evaluation, METRIC, SCORES)


def test_the_first_sentence_of_a_report_says_what_the_model_finds_against_the_pretrained_one():
    said = achieved(CHOSEN, compared(BEFORE, BEST))
    start = (
        "The model of this run, mixture of 0.7 x step 8 and 0.3 x step 0, against the pretrained model on the 3 eval "
    )
    assert said.startswith(f"{start}questions, which also chose it: recall@4 0.000 -> 1.000, +100.0 points, 95% ")
    kept = achieved(KEPT, compared(BEFORE, BEFORE))
    assert kept.startswith("The run leaves the pretrained model, which has recall@4 0.000 and nDCG@10 0.")


def test_the_comparison_says_before_after_and_whether_it_is_more_than_chance():
    # All golds in the top 4: before none of the three, after all. Two of them share golds: two clusters, of which
    # 2 of 4 sign patterns are as extreme.
    lines, intervals = compare(compared(BEFORE, BEST), BEFORE, BEST)
    assert lines[:2] == [
        "eval, 3 questions:",
        "  recall@4 0.000 -> 1.000, +100.0 points, 95% interval +100.0 to +100.0, p = 0.5: not beyond noise",
    ]
    assert lines[2].startswith("  nDCG@10  ")
    assert lines[3:] == [
        "the eval questions chose the model, so this gain may be too large; --test_file measures a fair one"
    ]
    assert intervals["eval"]["retr/document_recall/recall4"] == (1.0, 1.0)


def test_the_comparison_has_a_line_for_each_number_of_dimensions():
    def measured(of: ModelState, recall: float) -> ModelState:
        values = {name_at(label, 64): recall for label in HEADLINES}
        return ModelState(of.step, Evaluation({"eval": replace(of.evaluation.splits["eval"], metrics=values)}))

    states = measured(BEFORE, 0.25), measured(BEST, 0.5)
    lines, _ = compare(compared(*states), *states, dimensions=[64, 32])
    assert lines[3:-1] == [
        "  cut to 64 dimensions: recall@4 0.250 -> 0.500, nDCG@10 0.250 -> 0.500",
        "  cut to 32 dimensions: recall@4 unknown -> unknown, nDCG@10 unknown -> unknown",
    ]


def test_a_model_that_ranks_as_before_has_p_1():
    lines, _ = compare(compared(BEFORE, BEFORE), BEFORE, BEFORE)
    assert lines[1].endswith(" 0.000 -> 0.000, +0.0 points, 95% interval +0.0 to +0.0, p = 1: not beyond noise")


def test_the_results_files_have_the_best_step_and_the_metrics_of_their_split_only(tmp_path):
    around = {"eval": {"retr/document_recall/recall4": (0.5, 1.0)}}
    write_files(tmp_path, JOB, BEST, {"train_loss": 1.5}, around, CHOSEN)
    results = read_json(tmp_path / "train_results.json")
    assert (results["train_loss"], results["best_step"]) == (1.5, 8)
    assert results["chosen"] == "mixture of 0.7 x step 8 and 0.3 x step 0"
    against = "nDCG@10 is -10.0 points"
    assert results["candidates"][2] == {
        "candidate": "step 8",
        "value": 0.8,
        "ndcg": 0.1,
        "against": against,
        "unproven": "",
    }
    intervals = {"eval_retr/document_recall/recall4": [0.5, 1.0]}
    assert read_json(tmp_path / "eval_results.json") == {
        "step": 8,
        **BEST.evaluation.metrics,
        "intervals_95": intervals,
    }
    assert not (tmp_path / "test_results.json").exists()
    assert read_json(tmp_path / "all_args.json") == JOB.to_config()


def said(*given) -> str:
    """The last lines of a run."""
    return "\n".join(last_lines(JOB, *given))


def test_the_summary_says_when_the_pretrained_weights_are_kept():
    text = said(["a line"], KEPT, "report: out/report.html")
    assert "no evaluated step was better than the pretrained model: its weights are kept\na line\n" in text
    assert "\nreport: out/report.html\nnext:\n" in text
    assert "all_args.json --learning_rate 5e-06 --output_dir out-2" in text


def test_the_summary_of_an_improved_model_proposes_a_higher_learning_rate():
    for candidate in (Candidate((8,)), Candidate((4, 8))):
        choice = replace(CHOSEN, candidate=candidate, scores=[*SCORES, Score(candidate, 0.9, 0.9)])
        assert "--learning_rate 2e-05" in said([], choice, "")


def test_the_summary_of_a_mixture_with_the_pretrained_weights_proposes_a_lower_learning_rate():
    text = said([], CHOSEN, "")
    assert "chosen from 3 candidates: mixture of 0.7 x step 8 and 0.3 x step 0, recall4 0.750 on eval" in text
    assert "best mixture of 0.7 x step 8 and 0.3 x step 0 by eval_retr/document_recall/recall4; model and" in text
    assert "weights are kept" not in text
    assert "all_args.json --learning_rate 5e-06 --output_dir out-2" in text


def test_bad_records_are_listed_in_a_file_and_counted_in_a_line(tmp_path) -> None:
    said = write_bad_records(tmp_path, ["a.jsonl:3: not JSON"], "not JSON 1,000, not UTF-8 2")
    assert said.startswith("warning: bad records, left out: not JSON 1,000, not UTF-8 2; the first are listed in ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad_records.jsonl"]
    assert json.loads((tmp_path / "bad_records.jsonl").read_text()) == {"problem": "a.jsonl:3: not JSON"}
