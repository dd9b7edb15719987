"""What the progress line says, and how it is drawn on a terminal and in a log."""

import io

import pytest

from rqa_ray import progress as module
from rqa_ray.progress import Progress, ProgressLine, as_record, describe
from rqa_ray.texts import duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (42, "0:42"),
        (59.6, "1:00"),
        (754, "12:34"),
        (3599.5, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_a_duration_is_minutes_and_seconds_with_hours_where_there_are_some(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("progress", "seconds", "done", "text"),
    [
        (Progress(), 3.0, 0, "starting workers"),
        (Progress("step", 0, 1200), 0.0, 0, "step 0/1,200"),
        (
            Progress("step", 1000, 1200, loss=0.12345, quality="best 0.5"),
            0.0,
            0,
            "step 1,000/1,200, loss 0.123, best 0.5",
        ),
        (Progress("step", 20, 100, questions_per_step=8), 4.0, 10, "step 20/100, 20.0 questions/s, 0:32 left"),
        (Progress("evaluating", 50, 100, questions_per_step=8), 5.0, 50, "evaluating 50/100, 0:05 left"),
    ],
)
def test_the_line_says_what_is_known_so_far(progress, seconds, done, text):
    assert describe(progress, seconds, done) == text


def test_speed_after_a_resume_counts_only_what_was_done_since():
    at_900_of_1000 = Progress("step", 900, 1000, questions_per_step=1)
    assert describe(at_900_of_1000, 10.0, 5) == "step 900/1,000, 0.5 questions/s, 3:20 left"


def test_a_record_is_plain_data_of_its_own():
    progress = Progress("step", 1, 2, loss=0.5)
    record = as_record(progress)
    assert Progress(**record) == progress
    record["done"] = 2
    assert progress.done == 1


def test_a_terminal_shows_one_line_that_covers_the_longer_one_before_it():
    stream = Terminal()
    line = ProgressLine(stream)
    line.draw(Progress("a long phase"))
    line.draw(Progress("short"))
    assert stream.getvalue() == "\ra long phase" + "\rshort" + " " * 7


def test_a_notebook_redraws_its_line_though_it_is_no_terminal():
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    line = ProgressLine(notebook)
    for done in (1, 2):
        line.draw(Progress("step", done, 9))
    assert notebook.getvalue().startswith("\rstep 1/9\rstep 2/9")


def test_clearing_leaves_an_empty_line_of_a_terminal_and_nothing_to_clear_again():
    stream = Terminal()
    line = ProgressLine(stream)
    line.draw(Progress("short"))
    line.clear()
    line.clear()
    assert stream.getvalue() == "\rshort" + "\r     \r"


def test_a_log_gets_the_first_line_at_once_and_the_next_after_a_while(monkeypatch):
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.draw(Progress("first"))
    line.draw(Progress("second"))
    monkeypatch.setattr(module, "SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    line.draw(Progress("third"))
    line.clear()
    assert stream.getvalue() == "first\nthird\n"


def test_a_log_does_not_repeat_a_line(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    stream = io.StringIO()
    line = ProgressLine(stream)
    for _ in range(3):
        line.draw(Progress("starting workers"))
    assert stream.getvalue() == "starting workers\n"
