"""The report of a run: what a person sees on it, and that data stay text."""

import re
from dataclasses import replace

import numpy as np
import pytest

from rqa_ray.data.sources import SourceCount
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES
from rqa_ray.reports.kinds import Group, Grouping
from rqa_ray.reports.moves import Listing, Move
from rqa_ray.reports.report_page import Phase, ReportPage
from rqa_ray.reports.split_part import SplitPart
from tests.browser import PROGRAM, Browser
from tests.builders import asked_questions, documents
from tests.reports.test_moves import AFTER, BEFORE
from tests.reports.test_suspects_page import EVIL

METRIC = "eval_retr/document_recall/recall4"
HISTORY = [
    {"step": 0, METRIC: 0.25},
    {"step": 5, "loss": 1.5, "learning_rate": 1e-4},
    {"step": 10, "loss": 0.5, "learning_rate": 1e-5},
    {"step": 10, METRIC: 0.75},
]


def split_part(after: np.ndarray = AFTER) -> SplitPart:
    compared = Comparison.of(asked_questions(), documents(), BEFORE, after)
    return SplitPart.of_run("eval", compared, documents(), 1)


def run_page(name: str = "my run") -> ReportPage:
    candidates = [("step 0 (pretrained)", 0.25, ""), ("step 10", 0.75, ""), ("a mixture", 0.8, "no proven gain")]
    facts = {"pretrained model": "tiny", "steps": "10"}
    phases = [Phase("steps", 90.0, 0.9), Phase("evaluations", 0.5, 0.1)]
    more = {"history": HISTORY, "chosen_step": 10, "phases": phases, "about_time": ["All in all."]}
    verdict = ["step 10 was chosen"]
    return ReportPage(name, verdict, [split_part()], facts, ["cut: 1%"], candidates=candidates, metric=METRIC, **more)


def test_the_page_says_what_was_gained_and_shows_three_curves():
    text = run_page().html()
    assert "+100.0 points, 95% interval +100.0 to +100.0, p = 0.5: not beyond noise" in text
    assert all(f"{label}: " in text for label in ("recall@k", "nDCG@10", "MRR@10", "accuracy@4"))
    assert text.count("<img ") == 3 and "no proven gain" in text and "cut: 1%" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text), "the page needs a network"


def test_a_run_without_steps_has_a_page_without_curves():
    page = run_page()
    text = ReportPage(page.name, page.verdict, page.splits, page.facts, page.data).html()
    assert "<img " not in text and "Models among which" not in text and "Where the time went" not in text


def test_several_sources_of_training_pairs_have_a_table_with_the_largest_first():
    page = replace(run_page(), sources=[SourceCount("a.jsonl", 1_000, 900), SourceCount("b.jsonl", 3_000, 2_500)])
    text = page.html()
    places = [text.index(found) for found in ("b.jsonl", "75.0%", "2,500", "a.jsonl", "25.0%")]
    assert places == sorted(places)
    assert "Training pairs by source" not in replace(page, sources=page.sources[:1]).html()


def test_rankings_that_did_not_change_are_noise():
    assert [metric.lines[0].kind for metric in split_part(BEFORE).headlines] == ["noise", "noise"]


def test_questions_passages_and_groups_stay_text():
    part = run_page().splits[0]
    move = Move(EVIL, {EVIL: None, "after": 1}, [EVIL], 3, [EVIL])
    group = Group(EVIL, 3, [dict.fromkeys(HEADLINES, 0.5)] * 2)
    part = replace(part, name=EVIL, listings=[Listing(EVIL, [move], 9)], groupings=[Grouping(EVIL, [group], 40)])
    text = replace(run_page(EVIL), splits=[part], facts={EVIL: EVIL}, verdict=[EVIL]).html()
    assert text.count("<script") == 1 and text.count("</script") == 1
    assert "The 1 largest of 40 groups." in text and "and 2 more" in text
    assert ": 9; the 1 most telling are shown, 8 are left out" in text


def test_the_filter_hides_what_does_not_have_the_words(tmp_path):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path / "report.html"
    path.write_text(run_page().html(), encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.open(path)
        visible = "[...document.querySelectorAll('.question')].filter((one) => !one.hidden).length"
        assert browser.ask(visible) > 1
        browser.ask("document.querySelector('#filter').focus()")
        browser.press(*"1 OR 3")
        assert browser.ask(visible) == 1 and browser.text("#found") == "1 of 3 questions"


def test_a_loss_that_is_not_a_number_leaves_a_gap_and_whole_numbers_are_drawn():
    page = run_page()
    history = [{"step": 5, "loss": float("nan")}, {"step": 6, "loss": 2}, {"step": 7, "loss": 1.5}]
    assert replace(page, history=history).html().count("<img ") == 1
    assert "<img " not in replace(page, history=history[:1]).html()


def test_on_a_phone_names_of_groups_are_not_broken_inside_a_word(tmp_path):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    page = run_page()
    means = [dict.fromkeys(HEADLINES, 0.5)] * 2
    split = replace(page.splits[0], groupings=[Grouping("words of the question", [Group("11 to 20", 40, means)], 1)])
    path = tmp_path / "report.html"
    path.write_text(replace(page, splits=[split]).html(), encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.resize(390, 800)
        browser.open(path)
        head = "[...document.querySelectorAll('th')].find((one) => one.innerText == 'words of the question')"
        assert browser.ask(f"{head}.offsetHeight") < 150
        assert browser.ask("document.documentElement.scrollWidth") <= 390
