"""The report of a search opens without network, and its picture can be drawn for any trials."""

import io
import re
from dataclasses import replace

import pytest

from rqa_ray.reports.search_page import PAGE_FILE, PICTURE_FILE, draw_search, page, write_report
from rqa_ray.reports.trials import FAILED, FINISHED, STOPPED, Choices, Range, Trial

RECALL = "eval_retr/document_recall/recall4"
SPACE = {
    "learning_rate": Range(1e-6, 1e-3, is_log=True, is_whole=False),
    "global_batch_size": Choices((64, 16, 32)),
    "pooling_type": Choices(("mean", "cls")),
    "hard_neg_ratio": Range(0, 1, is_log=False, is_whole=False),
}
VALUES = {"learning_rate": 1e-5, "global_batch_size": 16, "pooling_type": "cls", "hard_neg_ratio": 0.5}
BEST = Trial(1, "a", VALUES, FINISHED, 320, [(0, 0.5), (160, 0.7), (320, 0.6)], 20, 60.0)
TRIALS = [
    BEST,
    Trial(2, "b", VALUES | {"learning_rate": 1e-3}, STOPPED, 80, [(0, 0.5), (80, 0.2)], 5, 20.0),
    Trial(3, "c", VALUES, FAILED, 0, [], problem="<script>alert(1)</script>"),
]


def size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG")
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


@pytest.mark.parametrize(
    "names", [["learning_rate"], ["pooling_type"], ["learning_rate", "pooling_type"], list(SPACE)]
)
def test_a_picture_is_drawn_of_any_space(names):
    pytest.importorskip("matplotlib")
    space = {name: SPACE[name] for name in names}
    assert size(draw_search(TRIALS, space, RECALL, BEST)) == (1320, 990)
    assert size(draw_search([BEST], space, RECALL, BEST)) == (1320, 990), "of one trial too"


def test_the_background_of_a_picture_is_that_of_the_page():
    image = pytest.importorskip("matplotlib.image")
    corner = image.imread(io.BytesIO(draw_search(TRIALS, SPACE, RECALL, BEST)))[0, 0]
    assert len(corner) == 4 and corner[3] == 0


def test_the_page_needs_no_network_marks_the_winner_and_has_every_trial():
    text = page("search", TRIALS, list(SPACE), RECALL, BEST, b"picture")
    assert "http:" not in text and "https:" not in text and "data:image/png;base64," in text
    assert "<script" not in text
    assert len(re.findall("<tr", text)) == 4 and len(re.findall("class=winner", text)) == 1
    assert "0.5000 of the pretrained model, 0.7000 after" in text and "equally good" not in text
    equal = page("search", [*TRIALS, replace(BEST, number=4)], list(SPACE), RECALL, BEST, b"picture")
    assert "Trials 1, 4 are equally good; of equals, the first one wins." in equal


def test_without_matplotlib_the_report_has_no_pictures_and_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = write_report(tmp_path, TRIALS, SPACE, RECALL, BEST)
    assert (tmp_path / PAGE_FILE).is_file() and not (tmp_path / PICTURE_FILE).exists()
    assert 'pip install -e ".[charts]"' in lines[0]
