"""How text is written: for Arrow and tokenizers, and values and commands for a person."""

import html
import shlex
from collections.abc import Sequence
from typing import Any


def as_utf8(text: str) -> str:
    """The text with `?` for lone surrogates, which have no UTF-8 form: Arrow and tokenizers need one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def short(value: Any) -> str:
    """A value in as few characters as it needs: 3.2e-05, 64, cls."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Such as 0:42 or 1:03:20."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def command(*words: Any) -> str:
    """A command of Python that a shell takes as it stands: words with spaces are quoted."""
    return shlex.join(["python", *map(str, words)])


def html_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table that a notebook shows."""
    lines = [(head, "th"), *((row, "td") for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(short(cell))}</{tag}>" for cell in row) for row, tag in lines]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
