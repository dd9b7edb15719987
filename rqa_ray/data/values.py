"""Checks the values of records: texts, numbers and JSON of the right type; the errors say what was found."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any

from rqa_ray.texts import as_utf8

HAS_TEXT_FORM = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
LARGEST_SCORE = 3e38  # of a teacher, which fp32 holds


class RecordError(ValueError):
    """Raised for one bad record; the message says what was found, but not where."""


def parse_json(line: str) -> Any:
    """Parses the JSON value of one line. NaN is null, because pandas writes a missing value as NaN.

    Raises:
        RecordError: the line is not JSON, or contains another number that is not finite.
    """
    try:
        return json.loads(line, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON ({error}), found {line.strip()[:60]!r}") from None


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is no JSON number")


def texts_of(name: str, texts: Any) -> list[str]:
    """Returns the list `texts`, which a message calls `name`; raises RecordError if something in it is no text."""
    strangers = [text for text in texts if not isinstance(text, str)] if isinstance(texts, list) else [texts]
    if strangers:
        raise RecordError(f"`{name}` has to be text, found {kind_of(strangers[0])}")
    return texts


def instruction_of(value: dict[str, Any], name: str = "instruction") -> str | None:
    """Returns the text under a key; None if there is none."""
    instruction = value.get(name)
    if not isinstance(instruction, str | None):
        raise RecordError(f"`{name}` has to be a string, found {kind_of(instruction)}")
    return None if instruction is None else as_utf8(instruction)


def scores_of(value: dict[str, Any], name: str, scored: list[Any], of: str, *more: type) -> Any:
    """Returns the scores of some documents, or None if there are none; `more` are types that take a number's place."""
    scores = value.get(name)
    if scores is None:
        return None
    if not (isinstance(scores, list) and all(type(one) in (int, float, *more) for one in scores)):
        raise RecordError(f"`{name}` has to be a list of numbers, found {kind_of(scores)}")
    if not all(one is None or abs(one) < LARGEST_SCORE for one in scores):
        raise RecordError(f"`{name}` has a number that is not finite in fp32")
    if len(scores) != len(scored):
        raise RecordError(f"`{name}` has {len(scores)} scores for {len(scored)} `{of}`")
    return scores


def ids_of(value: dict[str, Any], name: str) -> list[str]:
    """Returns the texts of the ids under a key, which has one id, a list of ids, or (in CSV) a list as JSON."""
    given = [] if value.get(name) is None else value[name]
    if isinstance(given, str) and given.startswith("["):
        given = parse_json(given)
    ids = given if isinstance(given, list) else [given]
    strangers = [one for one in ids if id_text(one) is None]
    if strangers:
        raise RecordError(f"`{name}` has to be a list of texts or numbers, found {kind_of(strangers[0])}")
    return [text for one in ids if (text := id_text(one))]


def id_text(value: Any) -> str | None:
    """Returns the text by which an id is compared; None if the value is no id."""
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of whole numbers if some are missing
        value = int(value)
    is_id = isinstance(value, (str, int, float, *HAS_TEXT_FORM)) and not isinstance(value, bool)
    return as_utf8(str(value)) or None if is_id else None


def text_of(value: Any) -> str:
    """Returns the text of a value that JSON does not have, such as a date; Parquet contains such values."""
    if isinstance(value, HAS_TEXT_FORM):
        return str(value)
    raise RecordError(f"`metadata` has to be JSON, found a value of type {type(value).__name__}")


def keys_of(value: dict) -> str:
    """Returns words for a message: the first keys of an object."""
    names = [" ".join(key.split())[:40] for key in list(value)[:8]]  # a key may hold line breaks
    return "keys " + (", ".join(f"`{name}`" for name in names) or "none")


def kind_of(value: Any) -> str:
    """Returns words for a message: what a value is."""
    if value is None:
        return "null"
    if isinstance(value, (list, str)) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'string'}"
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(type(value), f"{value!r:.40}")
