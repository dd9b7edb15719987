"""Bad records that are left out and counted, where --on_bad_record skip asks for that."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from rqa_ray.data.distinct import clashing, describe_clash
from rqa_ray.errors import InputError

SKIPPED_LISTED = 20
CLASHES = "passages with another embedded text than the first of their identity, which is used"


@dataclass
class Skipped:
    """Bad records that were left out: the first ones as lines, and how many of each kind."""

    first: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, problem: str, path: str) -> None:
        """Counts one; its kind is what is said behind the place, without the details."""
        kind = re.split(r" \(|, |: ", problem.removeprefix(path).lstrip(":0123456789 "), maxsplit=1)[0]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if len(self.first) < SKIPPED_LISTED:
            self.first.append(problem)

    def add_clashes(
        self, ids: np.ndarray, text_hashes: np.ndarray, files: list[str], kind: str, skip_bad: bool
    ) -> None:
        """Counts the passages, of parallel arrays, that have several embedded texts.

        Raises:
            InputError: there is one, and it is not to be skipped; the line shows two of its texts.
        """
        found = clashing(ids, text_hashes)
        if len(found):
            problem = describe_clash(files, kind, int(found[0]))
            if not skip_bad:
                raise InputError(f"{problem}, or --on_bad_record skip takes the first text")
            self.first, self.kinds[CLASHES] = [*self.first, problem][-SKIPPED_LISTED:], len(found)

    def counts(self) -> str:
        """The kinds with their numbers, the most frequent first."""
        return ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items(), key=lambda item: -item[1]))

    @classmethod
    def of(cls, parts: Iterable[Skipped]) -> Skipped:
        """All of them together."""
        together = cls()
        for part in parts:
            together.first = [*together.first, *part.first][:SKIPPED_LISTED]
            for kind, count in part.kinds.items():
                together.kinds[kind] = together.kinds.get(kind, 0) + count
        return together
