"""Declares a setting: its default, the text that `-h` shows, and the values that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any

REQUIRED = MISSING  # used in place of a default


@dataclass(frozen=True)
class Check:
    """The values that a setting takes; `wanted` describes them after the words `has to be`."""

    holds: Callable[[Any], bool]
    wanted: str


def at_least(least: int) -> Check:
    return Check(lambda value: value >= least, f"at least {least}")


ABOVE_0 = Check(lambda value: value > 0, "above 0")


OWN_METADATA = ("check", "more_names", "is_path", "may_be_empty")  # metadata for our own use; the rest is for argparse


def setting(
    default: Any,
    text: str,
    check: Check | None = None,
    more_names: tuple[str, ...] = (),
    is_path: bool = False,
    may_be_empty: bool = False,
    **for_argparse: Any,
) -> Any:
    """Declares a field of a settings class: its default, and the text that `-h` shows.

    If the value is a list, `check` applies to each item, and only a list that `may_be_empty` may have no items. In a
    path, `~` is the home folder.
    """
    own = dict(zip(OWN_METADATA, (check, more_names, is_path, may_be_empty), strict=True))
    return field(default=default, metadata={"help": text, **own, **for_argparse})


def path(default: Any, text: str, **more: Any) -> Any:
    """Declares a setting that names files or folders, in which `~` is the home folder."""
    return setting(default, text, is_path=True, **more)
