"""Makes settings from a command line, a JSON config, or keyword arguments; a mistake becomes one line."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import glob
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from transformers import HfArgumentParser

from rqa_ray.config import is_config, misfit, read_config
from rqa_ray.credentials import MASK, is_masked
from rqa_ray.errors import InputError
from rqa_ray.fields import OWN_METADATA, REQUIRED, Check
from rqa_ray.help_text import help_text
from rqa_ray.texts import is_none_of

Given = Sequence[str] | Mapping[str, Any]  # words of a command line, or keyword arguments
T = TypeVar("T")

PLAIN_WORDS = {  # for what argparse and HfArgumentParser say
    r"invalid int value: (.*)": r"\1 is no whole number",
    r"invalid float value: (.*)": r"\1 is no number",
    r"Truthy value expected: got (.*) but expected one of.*": r"\1 is neither true nor false",
    r"expected (one|at least one) argument": "a value is missing",
}
TRUTH_VALUES = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")  # as HfArgumentParser has them

LONGEST_NAME = 255  # bytes of a file's name, on the usual file systems
DOCUMENT_SUFFIX = re.compile(r"\.(jsonl?|parquet|pkl|csv|tsv|txt|md|pdf|html?)(\.\w+)?$", re.IGNORECASE)


class _Help(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        print(parser.help_text(everything=values == "all"), end="")
        parser.exit()


class Parser(HfArgumentParser):
    """The flags of some settings classes; a mistake raises InputError with one line.

    Args:
        about: what the job does, its usage and an example: the first lines of `-h`.
        kinds: the settings classes.
        short: the classes whose settings a short `-h` shows, if they have a group.
        last: the last line of a short `-h`, about what `-h all` adds; with this line, rare settings are left out.
    """

    def __init__(self, about: str | None, *kinds: type, short: tuple[type, ...] = (), last: str = "") -> None:
        super().__init__(kinds, allow_abbrev=False, add_help=False)
        self.about, self.short, self.last = about or "", short or kinds, last
        self.add_argument("-h", "--help", action=_Help, nargs="?", choices=("all",), default=argparse.SUPPRESS)

    @property
    def settings(self) -> list[dataclasses.Field]:
        return [item for kind in self.dataclass_types for item in dataclasses.fields(kind)]

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The setting of each flag, in all spellings."""
        return self._option_string_actions

    def help_text(self, everything: bool = False) -> str:
        if everything:
            known = {item.name for item in self.settings} | {"help"}
            rest = [action for action in self._actions if action.dest not in known]
            return help_text(self.about, [(item, self.flags[f"--{item.name}"]) for item in self.settings], rest)
        declared = [item for kind in self.short for item in dataclasses.fields(kind) if "group" in item.metadata]
        shown = [item for item in declared if not (self.last and item.metadata.get("is_rare"))]
        return help_text(self.about, [(item, self.flags[f"--{item.name}"]) for item in shown], last=self.last)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        """Adds a flag for a field that a Group declared, as transformers does; transformers has no public hook."""
        plain: Any = copy.copy(field)
        plain.metadata = {name: value for name, value in field.metadata.items() if name not in OWN_METADATA}
        aliases = [f"--{name}" for name in field.metadata.get("more_names", ()) if name != field.name]
        plain.metadata["aliases"] = [*field.metadata.get("aliases", ()), *aliases]
        plain.metadata["aliases"] += [alias.replace("_", "-") for alias in aliases if "_" in alias]
        HfArgumentParser._parse_dataclass_field(parser, plain)
        action = parser._option_string_actions[f"--{field.name}"]
        action.setting = field  # type: ignore[attr-defined]  # for `misfit`
        if field.metadata.get("may_be_empty"):
            action.nargs = "*"
        action.required = False  # `read` has a shorter message for a missing flag

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # one of its names
        for pattern, said in PLAIN_WORDS.items():
            message = re.sub(pattern, said, message)
        raise InputError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices or [value]))
        if str(value) not in choices:
            raise InputError(f"{action.option_strings[0]} {value}: {is_none_of(str(value), choices)}")

    def words(self, given: Given, has_free_word: bool = False) -> list[str]:
        """Turns a command line with a JSON config in first place, or keyword arguments, into flags and values.

        Raises:
            InputError: no flag has the name; or the first word is neither a flag nor a config, and no word without a
                flag is allowed.
        """
        if isinstance(given, Mapping):
            return self.flags_of(given)
        words = list(given)
        if not words or words[0].startswith("-") or (has_free_word and not is_config(words[0])):
            return words
        path = os.path.expanduser(words[0])
        return self.flags_of(read_config(path), f"{path}: ") + words[1:]

    def flags_of(self, config: Mapping[str, Any], where: str = "") -> list[str]:
        """Turns names and values into words of a command line.

        Raises:
            InputError: no flag has a name, or a value has the wrong type; the message begins with `where`.
        """
        words = []
        for name, value in config.items():
            if f"--{name}" not in self.flags:
                raise InputError(f"{where}{self.unknown(name)}")
            if value is None:
                continue
            wanted = misfit(self.flags[f"--{name}"], value)
            if wanted:
                raise InputError(f"{where}{name} {value!r}: has to be {wanted}")
            if isinstance(value, (list, tuple)):
                words += [f"--{name}", *map(str, value)]
            else:  # name and value in one word, so that the value may begin with a dash
                words.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
        return words

    def read(self, words: list[str]) -> dict[str, Any]:
        """Returns values by name, with `~` expanded in paths.

        Raises:
            InputError: an unknown flag, a missing flag, or a value of another type.
        """
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            raise InputError(self.unknown(unknown[0].split("=")[0]))
        values = vars(namespace)
        for item in self.settings:
            if item.default is REQUIRED and values[item.name] in (None, "", [""]):
                raise InputError(f"--{item.name} is missing ({self._where_all_are()})")
            if item.metadata.get("is_path"):
                values[item.name] = _expand_home(values[item.name])
                _refuse_what_cannot_be(item.name, values[item.name])
        return values

    def unknown(self, name: str) -> str:
        """What is said of an unknown name, with or without dashes in front."""
        dashes = name[: len(name) - len(name.lstrip("-"))]
        known = [flag.lstrip("-") for flag in self.flags]
        close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
        more = f"; did you mean {dashes}{close[0]}?" if close else f" ({self._where_all_are()})"
        return f"{name}: unknown argument{more}"

    def _where_all_are(self) -> str:
        return "-h all lists all arguments" if self.last else "-h lists all arguments"


def parse(kind: type[T], given: Given, about: str | None = None, free_word: str | None = None) -> T:
    """Returns the settings of a job.

    Args:
        about: the first lines of `-h`.
        free_word: the setting that a word without a flag sets.

    Raises:
        InputError: unknown or missing names, or values that cannot work.
    """
    parser = Parser(about, kind)
    words = parser.words(given, has_free_word=free_word is not None)
    if free_word and not isinstance(given, Mapping) and not any(word.startswith(f"--{free_word}") for word in words):
        words = _name_free_word(words, parser, free_word)
    values = parser.read(words)
    check_values(kind, values)
    return kind(**values)


def check_values(kind: Any, values: Mapping[str, Any], more_checks: Mapping[str, Check] | None = None) -> None:
    """Raises InputError for the first value that its setting in a dataclass does not take.

    No setting takes a number that is not finite. `more_checks` are for settings that a library declares.
    """
    for item in dataclasses.fields(kind):
        value = values.get(item.name)
        check = item.metadata.get("check") or (more_checks or {}).get(item.name)
        for part in value if isinstance(value, list) else [value]:
            wanted = check.wanted if check and part is not None and not check.holds(part) else ""
            if isinstance(part, float) and not math.isfinite(part):
                wanted = wanted or "a finite number"
            if wanted:
                shown = f"{part:g}" if isinstance(part, float) else part
                raise InputError(f"--{item.name} {shown}: has to be {wanted}")


def _name_free_word(words: list[str], parser: Parser, name: str) -> list[str]:
    """Puts `--name=` before the word that belongs to no flag.

    A flag takes as many words as it needs; a list of files takes words that may be files. All words after `--` belong
    to no flag.

    Raises:
        InputError: there are several words without a flag.
    """
    named, taken, free = [], 0, ""
    action: argparse.Action | None = None
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words):
        is_last = place == len(words) - 1
        if place == end:
            action = None
            continue
        if word.startswith("-") and place < end:
            action, taken = parser.flags.get(word), 0
        elif action is not None and (
            (action.nargs is None and not taken)
            or (action.nargs == "?" and not taken and word.lower() in TRUTH_VALUES)
            or (action.nargs == "+" and not (taken and is_last and not free and _is_no_file(word)))
        ):
            taken += 1
        elif free:
            raise InputError(f"{free!r} and {word!r}: two words without a flag; put the {name} in quotes")
        else:
            if action is not None and action.nargs == "+":
                print(f"note: {word!r} names no file, so it is the {name}", file=sys.stderr)
            word, free, action = f"--{name}={word}", word, None
        named.append(word)
    return named


def _is_no_file(word: str) -> bool:
    """Returns whether a word is no file, glob or URI, and does not look like one.

    A word looks like a file if it contains no space, but a slash or the suffix of a document.
    """
    path = os.path.expanduser(word)
    if "://" in word or os.path.exists(path) or glob.glob(path, recursive=True):
        return False
    looks_like_one = os.sep in word or DOCUMENT_SUFFIX.search(word)
    return any(character.isspace() for character in word) or not looks_like_one


def _expand_home(value: Any) -> Any:
    if isinstance(value, list):
        return [os.path.expanduser(part) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _refuse_what_cannot_be(setting: str, value: Any) -> None:
    """Raises InputError for a URI whose credentials a stored config does not have, and for a name that is too long."""
    for path in value if isinstance(value, list) else [value]:
        if isinstance(path, str) and is_masked(path):
            raise InputError(
                f"--{setting} {path}: {MASK} stands for credentials, which are not stored; give the URI with its "
                "credentials, or set them in the environment"
            )
        for name in path.split(os.sep) if isinstance(path, str) and "://" not in path else []:
            if len(os.fsencode(name)) > LONGEST_NAME:
                raise InputError(f"--{setting} {path:.60}...: has a name of more than {LONGEST_NAME} bytes")
