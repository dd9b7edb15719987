"""The report of an evaluation: every retriever with intervals, and the questions that the first has lost."""

from pathlib import Path

import numpy as np

from rqa_ray.evaluation.evaluated import Evaluated, Result
from rqa_ray.evaluation.metrics import question_metrics
from rqa_ray.reports.evaluation_page import page_of, write_evaluation_report
from rqa_ray.reports.report_page import ReportPage
from tests.builders import asked_questions, documents
from tests.reports.test_moves import AFTER, BEFORE


def evaluated(**more: Result) -> Evaluated:
    asked, ids = asked_questions(), documents().passage_ids

    def result(positions: np.ndarray, **options: float) -> Result:
        values = question_metrics(ids[positions], asked.gold_ids)
        return Result(values, (np.zeros(positions.shape), positions), **options)

    results = {"dense": result(BEFORE[:, :3], latency=0.01), "bm25": result(AFTER), **more}
    return Evaluated(asked, ids, documents().document, results, {"retriever": "dense", "passages": "5"})


def evaluation_page() -> ReportPage:
    found = evaluated()
    return page_of("scores", evaluated(**{"output/earlier": Result(found.results["bm25"].values)}))


def test_the_report_has_the_metrics_of_all_retrievers_and_what_the_first_has_lost(tmp_path: Path):
    said = write_evaluation_report(tmp_path, "out", evaluated())
    assert said == "report: out/report.html; open it in a browser"
    text = (tmp_path / "report.html").read_text()
    assert "<title>Report of out</title>" in text and "<h2>The evaluation</h2>" in text
    assert "bm25 against dense: +" in text and "dense has not all golds on top (recall@4): " in text
    assert "test: bm25 is better than dense: " in text and "test: dense is better than bm25: 0" in text
    assert "dense not found, bm25 at 1" in text.replace("bm25 at 1, dense not found", "dense not found, bm25 at 1")
    assert "ranked above it by dense" in text
    assert "Where the time went" not in text and "<img" not in text


def test_an_earlier_run_of_which_only_the_metrics_are_known_is_compared_too():
    [part] = evaluation_page().splits
    assert part.systems == ["dense", "bm25", "output/earlier"]
    titles = [listing.title for listing in part.listings]
    assert "output/earlier is better than dense" in titles
    [of_earlier] = [one for one in part.listings if one.title == "output/earlier is better than dense"]
    assert of_earlier.moves and list(of_earlier.moves[0].ranks) == ["dense"]
