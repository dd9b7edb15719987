"""How a setting is declared: its default, the text that `-h` shows, and which values it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any

REQUIRED = MISSING  # in place of a default


@dataclass(frozen=True)
class Check:
    """Which values a setting takes; `wanted` says so after the words `has to be`."""

    holds: Callable[[Any], bool]
    wanted: str


def at_least(least: int) -> Check:
    return Check(lambda value: value >= least, f"at least {least}")


ABOVE_0 = Check(lambda value: value > 0, "above 0")


OWN_METADATA = ("check", "more_names", "is_path", "may_be_empty")  # of a field; the rest is for argparse


def setting(
    default: Any,
    text: str,
    check: Check | None = None,
    more_names: tuple[str, ...] = (),
    is_path: bool = False,
    may_be_empty: bool = False,
    **for_argparse: Any,
) -> Any:
    """A field of a settings class: its default, and the text that `-h` shows.

    Where the value is a list, `check` is of each item, and only one that `may_be_empty` may be given without items. In
    a path, `~` is the home folder.
    """
    own = dict(zip(OWN_METADATA, (check, more_names, is_path, may_be_empty), strict=True))
    return field(default=default, metadata={"help": text, **own, **for_argparse})


def path(default: Any, text: str, **more: Any) -> Any:
    """A setting that names files or folders, in which `~` is the home folder."""
    return setting(default, text, is_path=True, **more)
