"""Words of a command line, or a JSON config, to a Job; every mistake in them is one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import HfArgumentParser

from rqa_ray.arguments import Job, RetrieverTrainingArguments, Settings, check
from rqa_ray.data.files import open_file
from rqa_ray.errors import InputError
from rqa_ray.trainer_flags import ALIASES, NO_EFFECT, REFUSED
from rqa_ray.whole_files import NO_SPACE

USAGE = "[CONFIG.json] [--FLAG VALUE ...]"


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message} (-h lists all arguments)")


def training_parser(program: str, *more: type) -> argparse.ArgumentParser:
    """The parser of all training flags, and of those of `more` dataclasses."""
    types = (*more, Settings, RetrieverTrainingArguments)
    return _Parser(types, allow_abbrev=False, usage=f"{program} {USAGE}")


def parse_job(argv: Sequence[str]) -> Job:
    """A job from command-line words; a first word that ends in .json is a config, which flags after it override.

    Raises:
        InputError: unknown names or values that cannot work.
    """
    return parse_with(argv, training_parser("train.py"))[0]


def parse_with(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[Job, dict[str, Any]]:
    """As `parse_job`, with the parser's further values by name."""
    words, notes = _translate_aliases(expand_config(list(argv)))
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise InputError(_unknown_argument(unknown[0], parser))
    values = vars(namespace)
    settings = Settings(**{item.name: values.pop(item.name) for item in dataclasses.fields(Settings)})
    options = parser._option_string_actions  # --no_NAME too: its destination is NAME
    given = {options[word.split("=")[0]].dest for word in words if word.split("=")[0] in options}
    defaults = {item.name: item for item in dataclasses.fields(RetrieverTrainingArguments)}
    own_defaults = set(RetrieverTrainingArguments.__annotations__)
    further = {name: values.pop(name) for name in list(values) if name not in defaults}
    training = {name: value for name, value in values.items() if name in own_defaults or name in given}
    for name in sorted(given & REFUSED.keys()):
        if values[name] not in (None, False, defaults[name].default, "no", ""):
            raise InputError(f"--{name} {values[name]}: {REFUSED[name]}")
        training.pop(name)
    for name in sorted(given & NO_EFFECT.keys()):
        notes.append(f"--{name} has no effect: {NO_EFFECT[name]}")
        training.pop(name)
    if "num_train_epochs" in given and training["max_steps"] > 0:
        if "max_steps" in given:
            notes.append(f"--num_train_epochs has no effect beside --max_steps {training['max_steps']}")
        else:
            training["max_steps"] = -1  # our default would win over the epochs that were asked for
    resume = training.pop("resume_from_checkpoint", None)
    if resume is not None and resume.lower() == "false":
        resume = None
    job = Job(settings, training, "true" if resume and resume.lower() == "true" else resume, notes)
    check(job)
    return job, further


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


def _translate_aliases(words: list[str]) -> tuple[list[str], list[str]]:
    """Replaces names that transformers dropped; returns a note for each."""
    translated: list[str] = []
    notes: list[str] = []
    dropping = False
    for word in words:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        name = name.replace("-", "_")
        if name in ALIASES:
            successor, why = ALIASES[name]
            notes.append(f"--{name} {why}")
            dropping = successor is None and not equals
            translated += [f"--{successor}{equals}{value}"] if successor else []
        elif dropping and not word.startswith("--"):
            dropping = False
        else:
            dropping = False
            translated.append(word)
    return translated, notes


def _unknown_argument(word: str, parser: argparse.ArgumentParser) -> str:
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
