"""Writes report.html of jobs/evaluate.py: metrics by retriever and kind of question, and the questions that were lost.

`report.html` beside this file is the template, which training runs use too.
"""

from __future__ import annotations

from pathlib import Path

from rqa_ray.evaluation.confidence import INTERVALS
from rqa_ray.evaluation.evaluated import SPLIT, Evaluated, of_cut
from rqa_ray.evaluation.metrics import HEADLINES
from rqa_ray.reports.moves import Found, Passages, Questions
from rqa_ray.reports.pages import write_report
from rqa_ray.reports.report_page import ReportPage
from rqa_ray.reports.split_part import Line, SplitPart


def write_evaluation_report(folder: Path, location: str, evaluated: Evaluated) -> str:
    """Writes report.html into a folder, whose files go to a location; returns a line for the user."""
    return write_report(folder, location, lambda: page_of(Path(location).absolute().name, evaluated).html())


def page_of(name: str, evaluated: Evaluated) -> ReportPage:
    """Returns the page of an evaluation."""
    asked = evaluated.asked
    own, *others = (
        Found(system, result.values, result.ranking[1] if result.ranking else None)
        for system, result in evaluated.results.items()
    )
    intervals = [
        {metric.removeprefix(f"{SPLIT}_"): ends for metric, ends in scores[INTERVALS].items()}
        for scores in evaluated.scores.values()
    ]
    lines: dict[str, list[Line]] = {label: [] for label in HEADLINES}
    for system, changes in evaluated.differences.items():
        for label, change in changes.items():
            lines[label].append(Line(f"{system} against {own.system}: {change.describe()}"))
    passages = Passages(evaluated.passage_ids, evaluated.document)
    questions = Questions(asked, passages, 1 + 2 * len(others))
    listings = [questions.missed(f"{own.system} has not all golds on top ({HEADLINES[0]})", own, others)]
    for other in others:
        titles = {
            "won": f"{own.system} is better than {other.system}",
            "lost": f"{other.system} is better than {own.system}",
        }
        listings += questions.won_and_lost(other, own, **titles)
    part = SplitPart.of(SPLIT, asked, (own, *others), own.system, intervals, lines, listings)
    return ReportPage(name, [], [part], evaluated.facts, of_cut(evaluated.scores), noun="evaluation")
