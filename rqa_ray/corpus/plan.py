"""Plans how a corpus is cut into shards: which passages it has, and which files each task reads.

This file does not import Ray; the tasks of `encode.py` call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rqa_ray.corpus.shards import Shard
from rqa_ray.data.distinct import first_places
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.report import describe_corpus
from rqa_ray.data.schema import Document, text_hash
from rqa_ray.errors import InputError
from rqa_ray.places import file_size

RANGE_BYTES = 32 * 2**20  # about how much one task reads
SHARDS = 64  # about how many; a killed job loses at most one for each worker
FEWEST_ROWS, MOST_ROWS = 64, 8_192  # rows of one shard

Range = tuple[str, int, int | None]  # path, start and end, as in `record_ranges`


class Group(NamedTuple):
    """Ranges of files that one task reads, and the shards that it writes."""

    ranges: list[Range]
    keep: np.ndarray  # (documents,) bool: true for the first document of each passage
    shards: list[Shard]


def rows_per_shard(num_rows: int) -> int:
    """Returns how many rows a shard gets when the corpus has `num_rows` rows."""
    return min(max(-(-num_rows // SHARDS), FEWEST_ROWS), MOST_ROWS)


class CorpusPlan:
    """The distinct passages of the document files, in document order, and how they are cut into shards.

    `passage_ids` and `text_hashes` are (P,) int64, `digest` is a hash of all texts, `num_documents` the number of
    documents with duplicates.
    """

    def __init__(
        self, ranges: Sequence[list[Range]], ids: Sequence[np.ndarray], text_hashes: Sequence[np.ndarray]
    ) -> None:
        """Makes the plan from lists with one entry for each group: ranges, ids and text hashes of all documents."""
        every = np.concatenate(ids)
        keep = np.zeros(len(every), bool)
        keep[first_places(every)] = True
        self.passage_ids, self.num_documents = every[keep], len(every)
        self.text_hashes = np.concatenate(text_hashes)[keep]
        self.digest = hashlib.blake2b(self.text_hashes.tobytes(), digest_size=16).hexdigest()
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
        """The shards of all groups."""
        return [shard for group in self.groups for shard in group.shards]

    def digest_of(self, shard: Shard) -> str:
        """Returns the `documents_digest` of a shard's documents."""
        part = slice(shard.first, shard.first + shard.rows)
        return _digest(self.passage_ids[part], self.text_hashes[part])

    def describe(self) -> str:
        """Returns a line for the user."""
        number = len(self.passage_ids)
        return f"corpus {describe_corpus(number, self.num_documents - number)}"

    def documents(self) -> Iterator[Document]:
        """Reads the files again and yields the distinct passages."""
        for group in self.groups:
            yield from kept_documents(group.ranges, group.keep)


def group_ranges(files: list[str]) -> list[list[Range]]:
    """Groups ranges of files, so that each group is about as large as one task should read."""
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
    """Yields the documents of a group; a string in place of a document says what is wrong with it."""
    for path, start, end in ranges:
        for _, record in read_records(path, "documents", start, end):
            assert isinstance(record, (Document, str))
            yield record


def kept_documents(ranges: Sequence[Range], keep: np.ndarray) -> Iterator[Document]:
    """Yields the documents of a group without duplicates.

    Raises:
        InputError: the files have changed since the plan was made.
    """
    wanted, changed = iter(keep), changed_since(ranges)
    for document in read_documents(ranges):
        is_kept = next(wanted, None)
        if is_kept is None or isinstance(document, str):
            raise changed
        if is_kept:
            yield document
    if next(wanted, None) is not None:
        raise changed


def changed_since(ranges: Sequence[Range]) -> InputError:
    """Returns the error of files that have changed since the plan was made."""
    return InputError(f"{ranges[0][0]}: this file, or one after it, changed while it was read; run the job again")


def documents_digest(documents: Sequence[Document]) -> str:
    """Returns a hash of the ids and the embedded texts of some documents, in their order."""
    ids = [document.passage_id for document in documents]
    hashes = [text_hash(document.fmt_content) for document in documents]
    return _digest(np.array(ids, np.int64), np.array(hashes, np.int64))


def _digest(passage_ids: np.ndarray, text_hashes: np.ndarray) -> str:
    return hashlib.blake2b(passage_ids.tobytes() + text_hashes.tobytes(), digest_size=8).hexdigest()
