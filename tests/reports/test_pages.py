"""What all pages share: data stay text, hidden characters are shown, a page leaves nothing and fits any screen."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from rqa_ray.reports.kinds import Group, Grouping
from rqa_ray.reports.moves import Listing, Move
from rqa_ray.reports.pages import cut, visible, write_report
from rqa_ray.reports.search_page import page as search_page
from rqa_ray.reports.suspects_page import page as suspects_page
from tests.browser import PROGRAM, Browser
from tests.reports.test_evaluation_page import evaluation_page
from tests.reports.test_report_page import run_page
from tests.reports.test_search_page import BEST, RECALL, SPACE, TRIALS
from tests.reports.test_suspects_page import suspect

CANARY = "document.title='taken over'"
EVIL = (
    f"</script><script>{CANARY}</script><img src=x onerror={CANARY}><!--<script> ]]> \x00 \ud800 {{{{ 7 * 7 }}}} &lt; "
    f"'\" onmouseover={CANARY} \u202eabc\u2066 \u2028 https://example.com/x.png {'w' * 5_000} "
)


def test_hidden_characters_are_shown_and_long_texts_are_cut():
    assert visible("a\x00b\u202ec\u2069\td\n") == "a\\u0000b\\u202ec\\u2069\td\n"
    assert visible("\ud800") == "?" and visible(1.5) == 1.5
    assert cut("abcdef", 4) == "abcd ... (2 more characters)"
    assert len(visible("x" * 10_000_000)) < 3_000


def test_a_report_that_cannot_be_made_is_a_warning_and_leaves_no_file(tmp_path):
    def fails():
        raise KeyError("log_history")

    said = write_report(tmp_path, "out", fails)
    assert said.startswith("warning: no report.html: KeyError: ") and said.endswith("all other files are whole")
    assert not list(tmp_path.iterdir())


def evil_report(page) -> str:
    part = page.splits[0]
    move = Move(EVIL, dict.fromkeys(part.systems, 2), [EVIL], 5, [EVIL])
    grouping = Grouping(EVIL, [Group(EVIL, 3, [{EVIL: 0.5}] * len(part.systems))], 40, (EVIL,))
    part = replace(part, name=EVIL, note=EVIL, groupings=[grouping], listings=[Listing(EVIL, [move], 9)])
    return replace(page, name=EVIL, verdict=[EVIL], splits=[part], facts={EVIL: EVIL}, data=[EVIL]).html()


def evil_suspects() -> str:
    one = suspect(0, EVIL)
    one["rival"]["metadata"] = {"title": EVIL, "source": f"javascript:{CANARY}"}
    return suspects_page(EVIL, [one], note=EVIL)


PAGES = {
    "run": lambda: evil_report(run_page()),
    "evaluation": lambda: evil_report(evaluation_page()),
    "search": lambda: search_page(EVIL, [*TRIALS, replace(TRIALS[2], problem=EVIL)], list(SPACE), RECALL, BEST, None),
    "suspects": evil_suspects,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.mark.parametrize("name", PAGES)
def test_data_run_no_code_and_ask_nobody_and_the_page_fits_a_phone_and_a_desk(browser, tmp_path, name):
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](), encoding="utf-8")
    for width, dark in ((390, False), (1_400, True)):
        browser.resize(width, 800, dark)
        browser.open(path)
        browser.ask("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert (
            browser.ask("document.title").replace("Report of ", "").replace("Suspects of ", "").startswith("</script>")
        )
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.querySelectorAll('img[onerror], [onmouseover]').length") == 0
        shown = browser.text("main")
        assert "<script>document.title=" in shown and "]]> \\u0000" in shown and "\\u202eabc\\u2066" in shown
        back = browser.ask("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(22, 24, 27)" if dark else "rgb(246, 246, 243)")
    assert not browser.complaints(), json.dumps(browser.complaints())
