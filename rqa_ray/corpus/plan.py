"""Plans how a corpus is cut into shards: which passages it has, and which files each task reads.

This file does not import Ray; the tasks of `encode.py` call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rqa_ray.corpus.shards import Shard
from rqa_ray.data.distinct import clashing, describe_clash, is_among, is_first
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
    num_documents: int
    kept_bits: bytes  # one bit for each document: 1 for the first document of each passage
    shards: list[Shard]
    digests: list[str]  # the `documents_digest` of each shard

    @property
    def keep(self) -> np.ndarray:
        """(documents,) bool: true for the first document of each passage."""
        return np.unpackbits(np.frombuffer(self.kept_bits, np.uint8), count=self.num_documents).astype(bool)


def rows_per_shard(num_rows: int) -> int:
    """Returns how many rows a shard gets when the corpus has `num_rows` rows."""
    return min(max(-(-num_rows // SHARDS), FEWEST_ROWS), MOST_ROWS)


class CorpusPlan:
    """The distinct passages of the document files, in document order, and how they are cut into shards.

    `passage_ids` is (P,) int64, `digest` a hash of all texts, `num_documents` the number of documents with duplicates,
    and `clash` a passage with several embedded texts, or None. A passage takes 8 bytes, for its id, and a document one
    bit; while the plan is made, a document takes 10 bytes, and a duplicate 50.
    """

    def __init__(
        self,
        ranges: Sequence[list[Range]],
        sizes: Sequence[int],
        ids: Iterable[np.ndarray],
        text_hashes: Iterable[np.ndarray],
    ) -> None:
        """Makes the plan from the ranges of each group, its number of documents, and their ids and text hashes.

        `ids` and `text_hashes` bring the arrays of one group after the other, so that memory need not hold them all.
        """
        ends = np.cumsum(sizes)
        slices = [slice(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]
        every = np.empty(sum(sizes), np.int64)
        for part, own in zip(slices, ids, strict=True):
            every[part] = own
        keep = is_first(every)
        repeated = np.unique(every[~keep])
        self.num_documents, num_passages = len(every), int(keep.sum())
        self.groups: list[Group] = []
        rows, first, number, digest = rows_per_shard(num_passages), 0, 0, hashlib.blake2b(digest_size=16)
        doubtful: list[np.ndarray] = [np.zeros((2, 0), np.int64)]  # ids and text hashes of the repeated passages
        for of_group, part, hashes in zip(ranges, slices, text_hashes, strict=True):
            is_repeated, kept = is_among(every[part], repeated), keep[part]
            if is_repeated.any():
                doubtful.append(np.unique(np.stack([every[part][is_repeated], hashes[is_repeated]]), axis=1))
            own, hashes = every[part][kept], hashes[kept]
            digest.update(hashes.tobytes())
            shards, digests, stop = [], [], first + len(own)
            for start in range(0, len(own), rows):
                shards.append(Shard(f"passages-{number:06d}", first + start, min(rows, len(own) - start)))
                digests.append(_digest(own[start : start + rows], hashes[start : start + rows]))
                number += 1
            self.groups.append(Group(of_group, len(kept), np.packbits(kept).tobytes(), shards, digests))
            every[first:stop] = own  # moved to where the passages before it end: a second array would take as much
            first = stop
        self.passage_ids, self.digest = every[:num_passages], digest.hexdigest()
        clashes = clashing(*np.concatenate(doubtful, axis=1))
        self.clash = int(clashes[0]) if len(clashes) else None

    @property
    def shards(self) -> list[Shard]:
        """The shards of all groups."""
        return [shard for group in self.groups for shard in group.shards]

    def refuse_clash(self) -> None:
        """Raises InputError if a passage has several embedded texts; the message shows two of them."""
        if self.clash is not None:
            files = dict.fromkeys(path for group in self.groups for path, _, _ in group.ranges)
            raise InputError(describe_clash([*files], "documents", self.clash))

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
