"""Reads a JSON config, and checks the types of its values, which become words of a command line."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from transformers.hf_argparser import string_to_bool

from rqa_ray.errors import InputError
from rqa_ray.places import open_file


def is_config(word: str) -> bool:
    """Returns whether a word is a config rather than a question that ends in the name of one."""
    is_name = not any(character.isspace() for character in word)
    return word.endswith(".json") and (is_name or os.path.exists(os.path.expanduser(word)))


def read_config(path: str) -> dict[str, Any]:
    """Returns the names and values of a config; raises InputError if there is none."""
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
    return config


def misfit(action: argparse.Action, value: Any) -> str:
    """Returns what a value of a config or of a keyword argument has to be; empty if the value may be right.

    The value becomes a word of a command line, which would hide its type.
    """
    setting = getattr(action, "setting", None)  # that of an old name is unknown
    metadata: Mapping[str, Any] = setting.metadata if setting else {}
    if isinstance(value, (list, tuple)):
        if action.nargs not in ("+", "*"):
            return "a single value"
        if any(isinstance(part, str) and re.match(r"-(?!\d)", part) for part in value):
            return "a list of words without a dash in front; ./-x is a file -x"
    elif isinstance(value, Mapping):
        return "" if setting and "dict" in str(setting.type) else "a single value"
    is_path = metadata.get("is_path")
    for part in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(part, (list, tuple, Mapping)):
            return "a list of single values"
        takes_truth = action.type is string_to_bool or "true" in (action.choices or ()) or metadata.get("may_be_true")
        if isinstance(part, bool) and setting and not takes_truth:
            return "a path" if is_path else "a text or a number"
        if is_path and isinstance(part, (int, float)) and not isinstance(part, bool):
            return "a path"
    return ""
