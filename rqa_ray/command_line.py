"""Settings from the words of a command line, a JSON config, or keyword arguments; a mistake in them is one line."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from transformers import HfArgumentParser

from rqa_ray.errors import InputError
from rqa_ray.fields import OWN_METADATA, REQUIRED, Check
from rqa_ray.places import NO_SPACE, open_file

Given = Sequence[str] | Mapping[str, Any]  # words of a command line, or keyword arguments
T = TypeVar("T")

USAGE = "[CONFIG.json] [--FLAG VALUE ...]"
TRUTH_VALUES = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")  # as HfArgumentParser has them


class Help(argparse.HelpFormatter):
    """Each flag once, without the spelling with dashes, and its default where the text does not say it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        values = self._format_args(action, "VALUE") if action.nargs != 0 else ""
        return f"{', '.join(names)} {values}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").rstrip()
        is_said = action.default in (None, argparse.SUPPRESS, False) or "efault" in text
        return text if is_said else f"{text} Default: %(default)s."


class Parser(HfArgumentParser):
    """The flags of some settings classes, of which the first says in -h what the job does; errors are one line."""

    def __init__(self, program: str, *kinds: type) -> None:
        usage = f"{program} {USAGE}"
        super().__init__(kinds, allow_abbrev=False, usage=usage, description=kinds[0].__doc__, formatter_class=Help)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        """As transformers adds a flag, from a field that `setting` made."""
        plain: Any = copy.copy(field)
        plain.metadata = {name: value for name, value in field.metadata.items() if name not in OWN_METADATA}
        aliases = [f"--{name}" for name in field.metadata.get("more_names", ()) if name != field.name]
        plain.metadata["aliases"] = [*field.metadata.get("aliases", ()), *aliases]
        plain.metadata["aliases"] += [alias.replace("_", "-") for alias in aliases if "_" in alias]
        HfArgumentParser._parse_dataclass_field(parser, plain)
        action = parser._option_string_actions[f"--{field.name}"]
        if field.metadata.get("may_be_empty"):
            action.nargs = "*"
        if action.required:  # `read` says in fewer words what is missing
            action.required, action.help = False, f"{action.help} Required."

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # one of its names
        raise InputError(f"{message} (-h lists all arguments)")

    def read(self, words: list[str]) -> dict[str, Any]:
        """Values by name; `~` is expanded in those that are paths.

        Raises:
            InputError: an unknown flag, a missing one, or a value of another kind.
        """
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            raise InputError(self._unknown(unknown[0]))
        values = vars(namespace)
        for item in (item for kind in self.dataclass_types for item in dataclasses.fields(kind)):
            if item.default is REQUIRED and values[item.name] in (None, "", [""]):
                raise InputError(f"--{item.name} is missing (-h lists all arguments)")
            if item.metadata.get("is_path"):
                values[item.name] = _expand_home(values[item.name])
        return values

    def _unknown(self, word: str) -> str:
        name = word.split("=")[0]
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"{name}: unknown argument" + (f"; did you mean {close[0]}?" if close else " (-h lists all arguments)")


def parse(kind: type[T], program: str, given: Given, free_word: str | None = None) -> T:
    """The settings of a job. `free_word` names the setting that a word without a flag stands for.

    Raises:
        InputError: unknown or missing names, values that cannot work.
    """
    parser, words = Parser(program, kind), as_words(given, has_free_word=free_word is not None)
    if free_word and not isinstance(given, Mapping) and not any(word.startswith(f"--{free_word}") for word in words):
        words = _name_free_word(words, parser, free_word)
    values = parser.read(words)
    check_values(kind, values)
    return kind(**values)


def check_values(kind: Any, values: Mapping[str, Any], more: Mapping[str, Check] | None = None) -> None:
    """Raises InputError for the first value that its setting in a dataclass, or in `more`, does not take."""
    checks = {item.name: item.metadata.get("check") for item in dataclasses.fields(kind)} | dict(more or {})
    for name, check in checks.items():
        value = values.get(name)
        for part in value if isinstance(value, list) else [value]:
            if check and part is not None and not check.holds(part):
                shown = f"{part:g}" if isinstance(part, float) else part
                raise InputError(f"--{name} {shown}: has to be {check.wanted}")


def as_words(given: Given, has_free_word: bool = False) -> list[str]:
    """Words of a command line: a JSON config in first place, or keyword arguments, become the flags they stand for.

    Raises:
        InputError: the first word is neither a flag nor a config, and no free word.
    """
    if isinstance(given, Mapping):
        return _flags(given)
    words = list(given)
    if not words or words[0].startswith("-"):
        return words
    path, rest = os.path.expanduser(words[0]), words[1:]
    if not path.endswith(".json"):
        if has_free_word:
            return words
        raise InputError(f"{path}: not an argument; the first word is a .json config or a --flag")
    try:
        with open_file(path) if "://" in path else open(path, "rb") as file:
            config = json.loads(file.read().decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: has to be an object of argument names and values")
    return _flags(config) + rest


def _flags(config: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in config.items():
        if value is None:
            continue
        if isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        else:  # one word, so that a value may begin with a dash
            words.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
    return words


def _name_free_word(words: list[str], parser: Parser, name: str) -> list[str]:
    """Puts `--name=` before the word that belongs to no flag: flags take what they need, and a list takes files.

    Raises:
        InputError: there are several such words.
    """
    named, taken, free = [], 0, ""
    action: argparse.Action | None = None
    for place, word in enumerate(words):
        is_last = place == len(words) - 1
        if word.startswith("-"):
            action, taken = parser._option_string_actions.get(word), 0
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
    """Whether a word names no file, glob or URI, and does not look as if it should: words, no path with a suffix."""
    path = os.path.expanduser(word)
    if "://" in word or os.path.exists(path) or glob.glob(path, recursive=True):
        return False
    return any(character.isspace() for character in word) or not (os.sep in word or "." in word)


def _expand_home(value: Any) -> Any:
    if isinstance(value, list):
        return [os.path.expanduser(part) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


@contextmanager
def user_errors(when_stopped: str | None = None) -> Iterator[None]:
    """Ends a job as its user expects: one line and code 2 for an InputError; 130, and a line maybe, for Ctrl-C.

    What the terminal's encoding lacks is printed as `?`.
    """
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print(f"error: {error.filename or 'output'}: no space left; free some, and go on", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if when_stopped:
            print(when_stopped)
        raise SystemExit(130) from None
