"""Counts the training pairs of each source: of each file, folder, glob or URI that `--train_file` names.

If `--train_file` has one name that stands for several files, each of these files is a source.

N is the number of pairs, S the number of sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, input_order
from rqa_ray.data.rows import first_of_question
from rqa_ray.data.share import Share
from rqa_ray.errors import InputError
from rqa_ray.places import shown

SHOWN_SOURCES = 10


@dataclass(frozen=True)
class SourceCount:
    """What a source gives to the training."""

    name: str
    pairs: int
    questions: int


@dataclass(frozen=True)
class Sources:
    """The sources of the training files."""

    names: tuple[str, ...]  # (S,)
    of_files: tuple[int, ...]  # the source of each file, in the order in which the files are read

    @classmethod
    def of(cls, found: Mapping[str, Sequence[str]]) -> Sources:
        """Makes the sources of the files that were found by each name; a file with several names has the first."""
        of_file: dict[str, int] = {}
        for source, files in enumerate(found.values()):
            for path in files:
                of_file.setdefault(path, source if len(found) > 1 else len(of_file))
        return cls(tuple(map(shown, found if len(found) > 1 else of_file)), tuple(of_file.values()))

    def of_pairs(self, tables: Sequence[pa.Table]) -> np.ndarray:
        """Returns (N,) the source of each pair of `token_tables.SCHEMAS["train"]`, in the order of the tables."""
        return np.array(self.of_files)[column(tables, "file")]

    def of_rows(self, tables: Sequence[pa.Table], share: Share) -> np.ndarray:
        """Returns the source of each row of `TrainingRows.of_share`."""
        return self.of_pairs(tables)[input_order(tables)][share.numbers(tables)]


@dataclass(frozen=True)
class PairsBySource:
    """The training pairs, by source and source document; R rows."""

    names: tuple[str, ...]
    sources: np.ndarray  # (R,)
    pairs: np.ndarray  # (R,) number of pairs
    questions: np.ndarray  # (R,) number of questions that begin here
    keys: np.ndarray | None = None  # (R,) source documents; None if the files are streamed, which fixes the share

    @classmethod
    def of(cls, sources: Sources, tables: Sequence[pa.Table]) -> PairsBySource:
        """Counts the pairs of blocks of `token_tables.SCHEMAS["train"]`."""
        found = sources.of_pairs(tables)
        order = input_order(tables)
        questions = np.zeros(len(found), np.int64)
        questions[order[first_of_question(tables, order)]] = 1
        return cls(sources.names, found, np.ones_like(questions), questions, column(tables, "source_key"))

    def counts(self, share: Share) -> list[SourceCount]:
        """Returns the counts of a share of the pairs, in the order of the sources."""
        taken = slice(None) if self.keys is None else share.takes(self.keys)
        sums = [
            np.bincount(self.sources[taken], numbers[taken], minlength=len(self.names)).astype(int).tolist()
            for numbers in (self.pairs, self.questions)
        ]
        return [SourceCount(*found) for found in zip(self.names, *sums, strict=True)]


def check_sources(counts: Sequence[SourceCount], batch_size: int) -> None:
    """Refuses sources that cannot fill a batch alone.

    Raises:
        InputError: there is only one source, or a source has fewer pairs than a batch.
    """
    if len(counts) < 2:
        raise InputError(
            f"--homogeneous_batches: needs several training sources, and {counts[0].name} is the only one"
        )
    least = min(counts, key=lambda count: count.pairs)
    if least.pairs < batch_size:
        raise InputError(
            f"--homogeneous_batches: {least.name} has {least.pairs:,} training pairs, fewer than a batch of "
            f"{batch_size:,}; lower --global_batch_size, or put these pairs into another source"
        )


def describe_sources(counts: Sequence[SourceCount]) -> list[str]:
    """Returns a line about several sources, the largest first; no line about one."""
    if len(counts) < 2:
        return []
    largest = sorted(counts, key=lambda count: -count.pairs)
    total = max(1, sum(count.pairs for count in counts))
    parts = [f"{count.name} {count.pairs:,} pairs ({count.pairs / total:.0%})" for count in largest[:SHOWN_SOURCES]]
    parts += [f"{len(counts) - SHOWN_SOURCES:,} more"] * (len(counts) > SHOWN_SOURCES)
    return [f"train sources: {', '.join(parts)}"]
