"""The user gets every exception as one line, also an exception without text."""

import re
from pathlib import Path

import pytest

from rqa_ray.errors import first_line, last_line

SOURCES = [path for room in ("rqa_ray", "jobs") for path in (Path(__file__).parents[1] / room).rglob("*.py")]


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("one line"), "one line", "one line"),
        (ValueError("\n first\nsecond \n"), "first", "second"),
        (TimeoutError(), "TimeoutError", "TimeoutError"),
        (OSError(" \n"), "OSError", "OSError"),
    ],
)
def test_an_exception_without_text_is_told_by_its_name(error, first, last):
    assert (first_line(error), last_line(error)) == (first, last)


def test_no_source_takes_a_line_of_an_exception_itself():
    taken = re.compile(r"str\((error|exception|problem|failure)\)(\.strip\(\))?\.split(lines)?\(.*\)\[")
    assert not [path.name for path in SOURCES if path.name != "errors.py" and taken.search(path.read_text())]
