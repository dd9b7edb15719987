"""Formats text: for Arrow and tokenizers, and values and commands for people."""

import difflib
import html
import re
import shlex
from collections.abc import Sequence
from typing import Any

from rqa_ray.credentials import masked

# Control characters but tab and line ends, marks that turn the direction of the text around them (Trojan Source,
# CVE-2021-42574), other invisible marks, lone surrogates.
INVISIBLE = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_NOT_IN_A_LINE = re.compile(f"[\t\n\r{INVISIBLE}]")


def printable(text: str) -> str:
    """Returns one line with escapes such as `\\x1b` for characters that would command a terminal, or hide from it."""
    return _NOT_IN_A_LINE.sub(lambda found: ascii(found[0])[1:-1], text)


def as_utf8(text: str) -> str:
    """Returns the text with `?` for lone surrogates, which have no UTF-8 form; Arrow and tokenizers need UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def short(value: Any) -> str:
    """Returns a value in as few characters as it needs: 3.2e-05, 64, cls."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Returns a time such as 0:42 or 1:03:20."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def command(*words: Any) -> str:
    """Returns a Python command for a shell, with quotes where they are needed, and without credentials."""
    return printable(masked(shlex.join(["python", *map(str, words)])))


def is_none_of(value: str, choices: Sequence[str]) -> str:
    """Returns the message about a value that is no choice: the nearest choice, and all choices."""
    close = difflib.get_close_matches(value, choices, n=1)
    question = f"did you mean {close[0]}? " if close else ""
    return f"{question}choose one of {', '.join(choices)}"


def html_table(head: Sequence[Any], rows: Sequence[Sequence[Any]], note: str = "") -> str:
    """Returns a table that a notebook shows, with a line below the table."""
    lines = [(head, "th"), *((row, "td") for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(short(cell))}</{tag}>" for cell in row) for row, tag in lines]
    below = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>{below}"
