"""The page of suspects: what a person sees and decides on it, and the file that it saves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rqa_ray.data.records import find_labels
from rqa_ray.data.schema import question_key
from rqa_ray.errors import InputError
from rqa_ray.reports import suspects_page
from rqa_ray.reports.suspects_page import page, write_suspects_page
from tests.browser import PROGRAM, Browser

EVIL = "</script><script>document.title = 'taken over'</script><!--<script> \u2028 \ud800 & 'quotes\" {{ 7 * 7 }}"


def suspect(number: int, text: str = "", **more: Any) -> dict[str, Any]:
    def doc(content: str) -> dict:
        return {"page_content": content, "metadata": {"source": f"https://a.b/{number}", "title": f"Title {number}"}}

    return {
        "id": f"id{number}",
        "question": f"How do I cancel order {number}?{text}",
        "gold_docs": [doc(f"You can cancel the order {number}. {text}")],
        "gold_score": 0.8,
        "rival": doc(f"Orders can be canceled {number}. {text}"),
        "score": 0.88,
        "dense_rank": 1,
        "bm25_rank": None,
        "accept": None,
        **more,
    }


def write(folder: Path, suspects: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(one) + "\n" for one in suspects)
    (folder / "suspects.jsonl").write_text(lines)
    return folder


def data_of(text: str) -> list[Any]:
    """What a browser reads as the data of a page."""
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL | re.IGNORECASE)
    return json.loads(found)


def test_data_cannot_leave_its_element_and_is_saved_as_it_came() -> None:
    given = [suspect(0, EVIL, large=2**60, share=1.0), suspect(1, accept=True)]
    text = page(EVIL, given)
    assert text.count("<script") == 2 and text.count("</script") == 2 and "{{ 7 * 7 }}</title>" in text
    assert "\u2028" not in text.split("<style>")[1]
    saved = [json.loads(f"{head}{json.dumps(accept)}}}") for head, accept in data_of(text)]
    assert saved == given
    assert '"large": 1152921504606846976, "share": 1.0, "accept": ' in data_of(text)[0][0]


def test_the_page_needs_no_network(tmp_path) -> None:
    line = write_suspects_page(write(tmp_path, [suspect(0)])).describe()
    assert line == f"audit: 1 suspects in {tmp_path / 'suspects.html'}; open it in a browser"
    text = (tmp_path / "suspects.html").read_text()
    assert "default-src 'none'" in text and not re.search(r"(src|href)=|@import|url\(", text.split("<script>")[0])


def test_a_page_has_no_more_suspects_than_a_person_reads_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(suspects_page, "MOST_SUSPECTS", 2)
    line = write_suspects_page(write(tmp_path, [suspect(number) for number in range(5)])).describe()
    assert line.startswith("audit: 2 of 5 suspects in ")
    text = (tmp_path / "suspects.html").read_text()
    assert "The first 2 of 5 suspects." in text and len(data_of(text)) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": None}, "no `id`, which has to be a string"),
        ({"gold_docs": None}, "no list of `gold_docs`"),
        ({"gold_docs": ["text"]}, "a document has to be an object, found a string"),
        ({"question": 3}, "`question` has to be a string with a question, found 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, problem) -> None:
    write(tmp_path, [suspect(0), suspect(1, **change)])
    with pytest.raises(InputError, match=f"suspects.jsonl:2: {problem}"):
        write_suspects_page(tmp_path)
    assert not (tmp_path / "suspects.html").exists()


def test_a_folder_without_suspects_says_where_they_come_from(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no suspects.jsonl in it; jobs/mine.py writes one"):
        write_suspects_page(tmp_path)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    with Browser(tmp_path / "browser") as started:
        yield started


def test_a_person_decides_by_key_and_the_saved_file_makes_golds(browser, tmp_path) -> None:
    write_suspects_page(write(tmp_path, [suspect(number) for number in range(500)]))
    browser.open(tmp_path / "suspects.html")
    assert browser.text("#progress") == "0 of 500 decided"
    assert browser.text("#question") == "How do I cancel order 0?"
    facts = browser.text("#rival .faint")
    assert facts == "score 0.880, 110% of the known, rank 1 by the model"
    marked = browser.ask("[...document.querySelectorAll('#rival mark')].map((one) => one.innerText)")
    assert marked == ["Orders", "0"]
    browser.press("a", "r", "j", "a", "k", "k", "r", "a", "u")  # 0 yes, 1 no, 3 yes, 2 no; 3 yes again, and undone
    assert browser.text("#question") == "How do I cancel order 3?" and browser.text("#state") == "accepted"
    browser.press("ArrowRight", *"ra" * 5)
    assert browser.text("#progress") == "14 of 500 decided"

    browser.reload()  # which loses nothing, and goes on
    assert browser.text("#progress") == "14 of 500 decided"
    assert browser.text("#question") == "How do I cancel order 14?"
    browser.press("f")
    assert browser.ask("document.querySelector('#filter').selectedOptions[0].innerText") == "undecided 486"
    browser.press("k")
    assert browser.text("#question") == "How do I cancel order 14?", "there is none before it"
    browser.click("#accept")
    assert browser.text("#question") == "How do I cancel order 15?"
    browser.press("s")
    path = tmp_path / "browser" / "downloads" / "accepted_labels.jsonl"
    lines = [json.loads(line) for line in browser.downloaded(path.name).splitlines()]
    decided = [True, False, False, True, *[False, True] * 5, True]
    expected = [suspect(number, accept=accept) for number, accept in enumerate(decided + [None] * 485)]
    assert lines == expected
    accepted = [number for number, accept in enumerate(decided) if accept]
    keys = {question_key(f"How do I cancel order {number}?") for number in accepted}
    assert find_labels([str(path)]).golds.keys() == keys


def test_the_end_is_said_and_the_filter_shows_what_was_decided(browser, tmp_path) -> None:
    write_suspects_page(write(tmp_path, [suspect(0, accept=False), suspect(1), suspect(2)]))
    browser.open(tmp_path / "suspects.html")
    assert browser.text("#question") == "How do I cancel order 1?", "the file has decided the first"
    browser.press("f", "a", "r")
    assert browser.text("#nothing") == "All are decided. Save them."
    assert not browser.ask("document.querySelector('#suspect').checkVisibility()")
    browser.press("f", "k", "k")
    assert (browser.text("#question"), browser.text("#state")) == ("How do I cancel order 0?", "refused")
    browser.press("u", "u", "u")  # of the two decisions made here, and then of the one that is shown
    assert browser.text("#progress") == "1 of 3 decided"


def test_markup_in_the_data_is_text(browser, tmp_path) -> None:
    evil = suspect(0, EVIL)
    evil["rival"]["metadata"] = {"title": EVIL, "source": "javascript:document.title='taken over'"}
    write_suspects_page(write(tmp_path, [evil, suspect(1, accept=True)]))
    browser.open(tmp_path / "suspects.html")
    assert browser.ask("document.title") == f"Suspects of {tmp_path.name}"
    for selector in ("#question", "#golds .text", "#rival .text", "#rival h3"):
        assert "</script><script>document.title = 'taken over'</script><!--<script>" in browser.text(selector)
    assert browser.ask("document.querySelectorAll('script, #rival a').length") == 2


def test_a_phone_shows_what_is_to_be_judged_first_and_nothing_beside_its_edge(browser, tmp_path) -> None:
    write_suspects_page(write(tmp_path, [suspect(0, "long" * 99)]))
    browser.resize(360, 640)
    browser.open(tmp_path / "suspects.html")
    assert browser.ask("document.documentElement.scrollWidth") == 360
    rival, golds, accept = (
        browser.ask(f"document.querySelector('{id}').getBoundingClientRect().toJSON()")
        for id in ("#rival", "#golds", "#accept")
    )
    assert rival["bottom"] < golds["top"] and accept["bottom"] <= 640 and accept["height"] >= 44
    colors = []
    for dark in (False, True):
        browser.resize(360, 640, dark)
        colors.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(246, 246, 243)", "rgb(22, 24, 27)"]
