"""Counts bad records that are left out because of `--on_bad_record skip`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from rqa_ray.data.distinct import clashing, describe_clash
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.errors import InputError

SKIPPED_LISTED = 20
CLASHES = "passages whose embedded text differs from the first one with the same id, which is used"


@dataclass
class Skipped:
    """Bad records that were left out: lines about the first ones, and how many there are of each kind."""

    first: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, problem: str, path: str) -> None:
        """Counts one bad record; its kind is the message without place and details."""
        kind = re.split(r" \(|, |: ", problem.removeprefix(path).lstrip(":0123456789 "), maxsplit=1)[0]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if len(self.first) < SKIPPED_LISTED:
            self.first.append(problem)

    def add_clashes(
        self,
        ids: np.ndarray,
        text_hashes: np.ndarray,
        files: list[str],
        kind: str,
        skip_bad: bool,
        labels: Labels = NO_LABELS,
    ) -> None:
        """Counts the passages with several embedded texts, from parallel arrays.

        Raises:
            InputError: there is such a passage, and bad records are not skipped; the line shows two of its texts.
        """
        found = clashing(ids, text_hashes)
        if len(found):
            problem = describe_clash(files, kind, int(found[0]), labels)
            if not skip_bad:
                raise InputError(f"{problem}, or pass --on_bad_record skip to use the first text")
            self.first, self.kinds[CLASHES] = [*self.first, problem][-SKIPPED_LISTED:], len(found)

    def counts(self) -> str:
        """Kinds and their numbers, the most frequent kind first."""
        return ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.kinds.items(), key=lambda item: -item[1]))

    @classmethod
    def of(cls, parts: Iterable[Skipped]) -> Skipped:
        """Adds up several parts."""
        together = cls()
        for part in parts:
            together.first = [*together.first, *part.first][:SKIPPED_LISTED]
            for kind, count in part.kinds.items():
                together.kinds[kind] = together.kinds.get(kind, 0) + count
        return together
