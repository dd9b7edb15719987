"""The report of a run: what a person sees on it, and that data stay text."""

import re
from dataclasses import replace

import pytest

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES
from rqa_ray.reports.moves import Group, Grouping, Move, Moves
from rqa_ray.reports.run_page import RunPage, SplitPart
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


def run_page(name: str = "my run") -> RunPage:
    parts = [SplitPart.of("eval", Comparison.of(asked_questions(), documents(), BEFORE, AFTER), documents())]
    candidates = [("step 0 (pretrained)", 0.25, ""), ("step 10", 0.75, ""), ("a mixture", 0.8, "no proven gain")]
    facts = {"pretrained model": "tiny", "steps": "10"}
    return RunPage(name, ["step 10 was chosen"], parts, facts, ["cut: 1%"], candidates, METRIC, HISTORY, 10)


def test_the_page_says_what_was_gained_and_shows_three_curves():
    text = run_page().html()
    assert "+100.0 points, 95% interval +100.0 to +100.0, p = 0.5: not beyond noise" in text
    assert text.count("<img ") == 3 and "no proven gain" in text and "cut: 1%" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text), "the page needs a network"


def test_a_run_without_steps_has_a_page_without_curves():
    page = run_page()
    text = RunPage(page.name, page.verdict, page.splits, page.facts, page.data, [], METRIC).html()
    assert "<img " not in text and "Models among which" not in text


def test_rankings_that_did_not_change_are_noise():
    part = SplitPart.of("eval", Comparison.of(asked_questions(), documents(), BEFORE, BEFORE), documents())
    assert [change.kind for change in part.changes] == ["noise", "noise"]


def test_questions_passages_and_groups_stay_text():
    part = run_page().splits[0]
    move = Move(EVIL, 0.5, (None, 1), [EVIL], 1, [EVIL])
    group = Group(EVIL, 3, *[dict.fromkeys(HEADLINES, 0.5)] * 2)
    moves = Moves([move], [move], 1, 1, [Grouping(EVIL, [group], 40)])
    page = run_page(EVIL)
    text = replace(page, splits=[replace(part, name=EVIL, moves=moves)], facts={EVIL: EVIL}, verdict=[EVIL]).html()
    assert text.count("<script") == 1 and text.count("</script") == 1
    assert "The 1 largest of 40 groups." in text


@pytest.mark.parametrize("width", [390, 1280])
def test_data_stay_text_and_the_page_fits_a_phone(tmp_path, width):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path / "report.html"
    path.write_text(run_page(EVIL).html(), encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.resize(width, 800)
        browser.open(path)
        assert "taken over" not in browser.ask("document.title")[:10]
        assert "<script>document.title" in browser.text("h1")
        assert browser.ask("document.documentElement.scrollWidth") <= width


def test_the_filter_hides_what_does_not_have_the_words(tmp_path):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path / "report.html"
    path.write_text(run_page().html(), encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.open(path)
        visible = "[...document.querySelectorAll('details')].filter((one) => !one.hidden).length"
        assert browser.ask(visible) > 1
        browser.ask("document.querySelector('#filter').focus()")
        browser.press(*"1 OR 3")
        assert browser.ask(visible) == 1


def test_a_loss_that_is_not_a_number_leaves_a_gap_and_whole_numbers_are_drawn():
    page = run_page()
    history = [{"step": 5, "loss": float("nan")}, {"step": 6, "loss": 2}, {"step": 7, "loss": 1.5}]
    assert replace(page, history=history).html().count("<img ") == 1
    assert "<img " not in replace(page, history=history[:1]).html()


def test_on_a_phone_names_of_groups_are_not_broken_inside_a_word(tmp_path):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    page = run_page()
    means = dict.fromkeys(HEADLINES, 0.5)
    groupings = [Grouping("words of the question", [Group("11 to 20", 40, means, means)], 1)]
    split = replace(page.splits[0], moves=replace(page.splits[0].moves, groupings=groupings))
    path = tmp_path / "report.html"
    path.write_text(replace(page, splits=[split]).html(), encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.resize(390, 800)
        browser.open(path)
        head = "[...document.querySelectorAll('th')].find((one) => one.innerText == 'words of the question')"
        assert browser.ask(f"{head}.offsetHeight") < 150
        assert browser.ask("document.documentElement.scrollWidth") <= 390
