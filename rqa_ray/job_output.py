"""Prints the result of a job: lines for a person, or one line of JSON for a program, with nothing else on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from rqa_ray.credentials import masked


@dataclass(kw_only=True)
class JobResult(ABC):
    """The typed result of a job, whose fields are what a program gets."""

    files: list[str] = field(default_factory=list)  # paths and URIs of all that the job has written
    report: str | None = None  # path or URI of the page for a person, if the job makes one

    @abstractmethod
    def describe(self) -> str:
        """Returns lines for a person."""


@contextmanager
def result_output(as_json: bool) -> Iterator[Callable[[JobResult], None]]:
    """Yields the function by which a job prints its result at the end.

    For JSON, whatever else this process, its libraries and its children print goes to stderr. This lasts until the
    process ends, because Ray prints lines of its workers late. So a job that fails leaves stdout empty.
    """
    if not as_json:
        yield lambda result: print(result.describe())
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as stdout, redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        yield lambda result: print(json.dumps(_of_job(result)), file=stdout, flush=True)


def _of_job(result: JobResult) -> dict[str, Any]:
    """Returns the JSON object of a result; every one has the files and the report."""
    return plain(result) | {"files": plain(result.files), "report": plain(result.report)}


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: dataclasses as objects, numbers that are not finite as null, no credentials.

    A dataclass whose JSON is not its fields has a method `for_json`.
    """
    if hasattr(value, "for_json"):
        return plain(value.for_json())
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, str):
        return masked(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
