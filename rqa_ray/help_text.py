"""Formats `-h`: settings below the headings of their groups, each with its default, in at most 100 columns."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field

from rqa_ray.fields import GROUPS, REQUIRED

COLUMNS = 100  # at most; fewer if the terminal is narrower
FLAG_COLUMNS = 31  # columns of a flag and its values, after two blanks; one blank more, then the text
HOW_TO_READ = "[...] is the default. Names in CONFIG.json are those of the flags."
REST = "transformers' other TrainingArguments"

Row = tuple[Field, argparse.Action]  # a setting and its flag


def help_text(about: str, settings: Sequence[Row], rest: Sequence[argparse.Action] = (), last: str = "") -> str:
    """Returns the text of `-h`.

    Args:
        about: what the job does, its usage and an example.
        settings: the settings to show; settings without a group come last.
        rest: further flags, which set no setting.
        last: the last line.
    """
    parts = [f"{about.strip()}\n{HOW_TO_READ}" if about else HOW_TO_READ]
    for group in GROUPS:
        rows = [row for row in settings if row[0].metadata.get("group") is group]
        rows.sort(key=lambda row: not shown_default(row[0]).startswith("required"))
        parts += _section(group.heading, [_setting(*row) for row in rows])
    others = [_setting(*row) for row in settings if "group" not in row[0].metadata]
    others += [_wrapped(action.option_strings[0], action.help or "") for action in rest]
    parts += _section(REST, others)
    return "\n\n".join([*parts, last] if last else parts) + "\n"


def shown_default(item: Field) -> str:
    """Returns the default of a setting as `-h` shows it.

    Empty if there is nothing to show, such as for a switch that is off.
    """
    if item.default is REQUIRED and item.default_factory is MISSING:
        return "required"
    unset = item.metadata.get("unset")
    if unset or item.default in ("", None, MISSING):
        return unset or ""
    if isinstance(item.default, bool):
        return "true" if item.default else ""
    return f"{item.default:g}" if isinstance(item.default, float) else str(item.default)


def _section(heading: str, rows: Sequence[str]) -> list[str]:
    return ["\n".join([f"{heading}:", *rows])] if rows else []


def _setting(item: Field, action: argparse.Action) -> str:
    text = " ".join((action.help or "").replace("%%", "%").split())
    if text.startswith(("refused:", "no effect:")):
        return _wrapped(f"--{item.name}", text)
    flag = f"--{item.name} {_values(item, action)}".rstrip()
    choices = [] if action.metavar else list(map(str, action.choices or []))
    if choices and len(flag) > FLAG_COLUMNS:
        flag = f"--{item.name} NAME"
        is_said = len(choices) == 1 or all(choice in text for choice in choices)
        text = text if is_said else f"{text.rstrip('.')}: {', '.join(choices)}."
    more_names = [name for name in item.metadata.get("more_names", ()) if name != item.name]
    if more_names:
        text = f"{text} Also --{min(more_names, key=len)}."
    default = shown_default(item)
    return _wrapped(flag, f"{text} [{default}]" if default else text)


def _values(item: Field, action: argparse.Action) -> str:
    """Returns the placeholder for the values of a flag."""
    is_list = action.nargs in ("+", "*")
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        return "|".join(map(str, action.choices))
    if action.nargs == "?":  # a switch
        return "true|false" if action.default else ""
    if item.metadata.get("is_path"):
        return "PATHS" if is_list else "PATH"
    one = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[call-overload]
    return f"{one} ..." if is_list else one


def _wrapped(flag: str, text: str) -> str:
    """Returns the lines of a flag and its text, which begins in the same line if there is room."""
    width = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 1)).columns)
    margin = min(FLAG_COLUMNS + 3, width // 2)
    lines = textwrap.wrap(text, width - margin, break_on_hyphens=False, break_long_words=False)
    if len(flag) > margin - 3:
        lines = ["", *lines]
    first, *others = lines or [""]
    return "\n".join([f"  {flag:{margin - 2}}{first}".rstrip(), *(f"{'':{margin}}{line}" for line in others)])
