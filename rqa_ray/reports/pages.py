"""Fills the templates of the reports, which are the .html files beside this file. A page needs no network.

`base.html` has what all pages share, `parts.html` the parts that several reports share. A page shows data as text,
never as markup. `visible` goes over every value that a template shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rqa_ray.places import REPORT_FILE, inside, shown, write_whole
from rqa_ray.texts import INVISIBLE, as_utf8

MOST_CHARACTERS = 2_000  # of a text on a page
HIDDEN = re.compile(f"[{INVISIBLE}]")


def render(template: str, **values: Any) -> str:
    """Returns the page that a template makes of some values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def visible(value: Any) -> Any:
    """Returns a text as a page shows it: cut, and with an escape such as `\\u202e` for each hidden character.

    Returns markup and values that are no text as they are.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", as_utf8(cut(value, MOST_CHARACTERS)))


def cut(text: str, most: int) -> str:
    """Returns a text with at most so many of its characters, and says how many are left out."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"


def write_report(folder: Path, location: str, make_page: Callable[[], str]) -> str:
    """Writes report.html into a folder, whose files go to a location; returns a line for the user.

    The line is a warning if no report could be made.
    """
    try:
        content = make_page().encode()
    except Exception as error:  # whatever is wrong with a page, the work of hours must not be lost for it
        return f"warning: no {REPORT_FILE}: {type(error).__name__}: {error}; all other files are whole"
    write_whole(folder / REPORT_FILE, content)
    return f"report: {shown(inside(location, REPORT_FILE))}; open it in a browser"
