"""Declares a setting: its group, its default, the text that `-h` shows, and the values that it takes."""

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


def from_to(least: float, most: float) -> Check:
    return Check(lambda value: least <= value <= most, f"from {least} to {most}")


def word_or_share(*words: str) -> Check:
    def holds(value: str) -> bool:
        try:
            return value in words or 0 <= float(value) <= 1
        except ValueError:
            return False

    return Check(holds, f"{', '.join(words)}, or a share from 0 to 1")


ABOVE_0 = Check(lambda value: value > 0, "above 0")

# metadata for our own use; the rest is for argparse
OWN_METADATA = ("group", "unset", "check", "more_names", "is_path", "may_be_empty", "may_be_true", "is_rare")


@dataclass(frozen=True)
class Group:
    """A heading of `-h`. Its methods declare the settings below the heading."""

    heading: str

    def setting(
        self,
        default: Any,
        text: str,
        check: Check | None = None,
        *,
        unset: str = "",
        more_names: tuple[str, ...] = (),
        is_path: bool = False,
        may_be_empty: bool = False,
        may_be_true: bool = False,
        is_rare: bool = False,
        **for_argparse: Any,
    ) -> Any:
        """Declares a field of a settings class.

        Args:
            default: the value if the user gives none; `-h` shows it after the text.
            text: what the setting does, and its unit.
            check: which values are right; in a list, each item is checked.
            unset: what happens without the flag, if the default does not say it.
            more_names: further flags for the same setting.
            is_path: whether `~` in the value is the home folder.
            may_be_empty: whether a list may be given without items.
            may_be_true: whether a text may be the truth value true.
            is_rare: whether only `-h all` shows the setting, in a job whose `-h` is long.
        """
        values = (self, unset, check, more_names, is_path, may_be_empty, may_be_true, is_rare)
        own = dict(zip(OWN_METADATA, values, strict=True))
        return field(default=default, metadata={"help": text, **own, **for_argparse})

    def path(self, default: Any, text: str, **more: Any) -> Any:
        """Declares a setting that names files or folders, in which `~` is the home folder."""
        return self.setting(default, text, is_path=True, **more)


# In the order of `-h`.
GROUPS = (
    QUESTION := Group("question"),
    TRIALS := Group("trials"),
    DATA := Group("data"),
    MODEL := Group("model"),
    LOSS := Group("loss and negatives"),
    STEPS := Group("steps and learning rate"),
    BATCHES := Group("batches and memory"),
    EVALUATION := Group("evaluation"),
    MEASUREMENT := Group("measurement"),
    WORKERS := Group("workers and storage"),
    OUTPUT := Group("output"),
    LOGGING := Group("logging"),
)
