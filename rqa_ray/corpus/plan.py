"""Which passages a corpus has and how it is cut into shards. Knows no Ray: tasks of `encode.py` call it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rqa_ray.corpus.shards import Shard
from rqa_ray.data.distinct import first_places
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.report import describe_corpus
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError
from rqa_ray.places import file_size

RANGE_BYTES = 32 * 2**20  # of a group, about
SHARDS = 64  # of a corpus, about: what a kill loses is at most one for each worker
FEWEST_ROWS, MOST_ROWS = 64, 8_192  # of a shard

Range = tuple[str, int, int | None]  # path, start and end, as `record_ranges` gives them


class Group(NamedTuple):
    """Ranges of files that one task reads, and the shards that they hold."""

    ranges: list[Range]
    keep: np.ndarray  # (documents,) bool: not a duplicate
    shards: list[Shard]


def rows_per_shard(num_rows: int) -> int:
    """Of so many rows."""
    return min(max(-(-num_rows // SHARDS), FEWEST_ROWS), MOST_ROWS)


class CorpusPlan:
    """The distinct passages of the document files in document order, and how they are cut into shards.

    passage_ids: (P,) int64. digest: of their texts. num_documents: with duplicates.
    """

    def __init__(
        self, ranges: Sequence[list[Range]], ids: Sequence[np.ndarray], text_hashes: Sequence[np.ndarray]
    ) -> None:
        """Parallel lists of groups: their ranges, and the passage ids and text hashes of all their documents."""
        every = np.concatenate(ids)
        keep = np.zeros(len(every), bool)
        keep[first_places(every)] = True
        self.passage_ids, self.num_documents = every[keep], len(every)
        self.digest = hashlib.blake2b(np.concatenate(text_hashes)[keep].tobytes(), digest_size=16).hexdigest()
        self.groups: list[Group] = []
        rows, first, number = rows_per_shard(len(self.passage_ids)), 0, 0
        for part, kept in zip(ranges, np.split(keep, np.cumsum([len(part) for part in ids])[:-1]), strict=True):
            stop, shards = first + int(kept.sum()), []
            for start in range(first, stop, rows):
                shards.append(Shard(f"passages-{number:06d}", start, min(rows, stop - start)))
                number += 1
            self.groups.append(Group(part, kept, shards))
            first = stop

    @property
    def shards(self) -> list[Shard]:
        """Of all groups."""
        return [shard for group in self.groups for shard in group.shards]

    def describe(self) -> str:
        """A line for the user."""
        number = len(self.passage_ids)
        return f"corpus {describe_corpus(number, self.num_documents - number)}"

    def documents(self) -> Iterator[Document]:
        """The distinct passages, read again."""
        for group in self.groups:
            yield from kept_documents(group.ranges, group.keep)


def group_ranges(files: list[str]) -> list[list[Range]]:
    """Ranges of files, small ones together, each group about as large as a task should read."""
    groups: list[list[Range]] = [[]]
    size = 0
    for path in files:
        ranges = record_ranges(path, RANGE_BYTES)
        for start, end in ranges:
            if size >= RANGE_BYTES:
                groups.append([])
                size = 0
            groups[-1].append((path, start, end))
            size += file_size(path) // len(ranges)
    return groups


def read_documents(ranges: Sequence[Range]) -> Iterator[Document | str]:
    """The documents of a group; a string says what is wrong with one."""
    for path, start, end in ranges:
        for _, record in read_records(path, "documents", start, end):
            assert isinstance(record, (Document, str))
            yield record


def kept_documents(ranges: Sequence[Range], keep: np.ndarray) -> Iterator[Document]:
    """The documents of a group that are no duplicates.

    Raises:
        InputError: there are others than when the plan was made.
    """
    wanted = iter(keep)
    changed = InputError(f"{ranges[0][0]}: it, or a file behind it, changed while it was read")
    for document in read_documents(ranges):
        is_kept = next(wanted, None)
        if is_kept is None or isinstance(document, str):
            raise changed
        if is_kept:
            yield document
    if next(wanted, None) is not None:
        raise changed
