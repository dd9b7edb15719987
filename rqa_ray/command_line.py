"""Words of a command line, or a JSON config; every mistake in them is one line."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from transformers import HfArgumentParser

from rqa_ray.errors import InputError
from rqa_ray.places import NO_SPACE, open_file

USAGE = "[CONFIG.json] [--FLAG VALUE ...]"


class Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message} (-h lists all arguments)")


def expand_config(words: list[str], switches: Collection[str] = ()) -> list[str]:
    """Words of a command line, a JSON config in first place replaced by the flags that it stands for.

    `switches` are names of flags that take no value.

    Raises:
        InputError: the first word is neither a flag nor a config.
    """
    if not words or words[0].startswith("-"):
        return words
    path, rest = words[0], words[1:]
    if not path.endswith(".json"):
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
    expanded = []
    for name, value in config.items():
        if value is None:
            continue
        if isinstance(value, list):
            expanded += [f"--{name}", *map(str, value)]
        elif value is True and name in switches:
            expanded.append(f"--{name}")
        else:  # one word, so that a value may begin with a dash
            expanded.append(f"--{name}={json.dumps(value) if isinstance(value, (bool, dict)) else value}")
    return expanded + rest


def unknown_argument(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}: unknown argument" + (f"; did you mean {close[0]}?" if close else " (-h lists all arguments)")


@contextmanager
def user_errors(when_stopped: str | None = None) -> Iterator[None]:
    """Ends a job as its user expects: one line and code 2 for an InputError; 130, and a line maybe, for Ctrl-C."""
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
