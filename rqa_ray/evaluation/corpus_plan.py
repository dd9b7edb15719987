"""Which passages a corpus has and how it is cut into shards: found by parsing it once, before anything is encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from rqa_ray.data.files import file_size
from rqa_ray.data.readers import RANGE_BYTES
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.schema import Document, passage_id
from rqa_ray.errors import InputError
from rqa_ray.evaluation.shards import Shard

SHARDS = 64  # of a corpus, about: what a kill loses is at most one for each worker
FEWEST_ROWS, MOST_ROWS = 64, 8_192  # of a shard
READER_CPUS = 0.5  # of a task that reads; encoders leave it free


def rows_per_shard(num_rows: int) -> int:
    """Of so many rows."""
    return min(max(-(-num_rows // SHARDS), FEWEST_ROWS), MOST_ROWS)


@dataclass
class CorpusPlan:
    """The distinct passages of the document files in document order, and how they are cut into shards."""

    passage_ids: np.ndarray  # (P,)
    num_documents: int  # with duplicates
    digest: str  # of the texts
    shards: list[Shard]
    groups: list[dict[str, Any]]  # of files that a task reads: `ranges`, `keep` (packed bits), `shards`

    def describe(self) -> str:
        """A line for the user."""
        duplicates = self.num_documents - len(self.passage_ids)
        left_out = f" ({duplicates:,} duplicate{'s' * (duplicates > 1)} left out)" if duplicates else ""
        return f"corpus {len(self.passage_ids):,} passages{left_out}"

    def documents(self) -> Iterator[Document]:
        """The distinct passages, read again."""
        for group in self.groups:
            yield from kept_documents(group["ranges"], group["keep"])


def plan_corpus(files: list[str]) -> CorpusPlan:
    """Parses all documents.

    Raises:
        InputError: the first bad line, or files without documents.
    """
    groups = _group_ranges(files)
    items = [{"group": number, "ranges": json.dumps(ranges)} for number, ranges in enumerate(groups)]
    read = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read_ids, batch_size=1, num_cpus=READER_CPUS
    )
    table = pa.concat_tables(ray.get(read.to_arrow_refs())).sort_by("group")
    problems = [problem for problem in table["problem"].to_pylist() if problem]
    if problems:
        raise InputError(problems[0])
    ids, hashes = (table[name].combine_chunks().flatten().to_numpy() for name in ("ids", "hashes"))
    if not len(ids):
        raise InputError(f"{files[0]}: no records in it")
    keep = np.zeros(len(ids), bool)
    keep[np.unique(ids, return_index=True)[1]] = True
    rows = rows_per_shard(int(keep.sum()))
    ends = np.cumsum([len(part) for part in table["ids"]])
    planned: list[dict[str, Any]] = []
    shards: list[Shard] = []
    first = 0
    for ranges, kept in zip(groups, np.split(keep, ends[:-1]), strict=True):
        stop = first + int(kept.sum())
        starts = range(first, stop, rows)
        own = [Shard(f"passages-{len(shards) + i:06d}", at, min(rows, stop - at)) for i, at in enumerate(starts)]
        planned.append({"ranges": json.dumps(ranges), "keep": np.packbits(kept).tobytes(), "shards": json.dumps(own)})
        shards += own
        first = stop
    digest = hashlib.blake2b(hashes[keep].tobytes(), digest_size=16).hexdigest()
    return CorpusPlan(ids[keep], len(ids), digest, shards, planned)


def _group_ranges(files: list[str]) -> list[list[tuple[str, int, int | None]]]:
    """Ranges of files, small ones together, each group about as large as a task should read."""
    groups: list[list[tuple[str, int, int | None]]] = [[]]
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


def _documents(ranges: list[tuple[str, int, int | None]]) -> Iterator[Document | str]:
    """The documents of a group; a string says what is wrong with one."""
    for path, start, end in ranges:
        for _, record in read_records(path, "documents", start, end):
            assert isinstance(record, (Document, str))
            yield record


def kept_documents(ranges: str, keep: bytes) -> Iterator[Document]:
    """The documents of a group that are no duplicates."""
    records = _documents(json.loads(ranges))
    for wanted, document in zip(np.unpackbits(np.frombuffer(keep, np.uint8)), records, strict=False):
        if isinstance(document, str):
            raise InputError(f"it changed while it was read: {document}")
        if wanted:
            yield document


def _read_ids(batch: dict[str, np.ndarray]) -> pa.Table:
    ids, hashes, problem = [], [], None
    for document in _documents(json.loads(str(batch["ranges"][0]))):
        if isinstance(document, str):
            problem = document
            break
        ids.append(document.passage_id)
        hashes.append(passage_id(None, document.fmt_content))
    return pa.table(
        {
            "group": [int(batch["group"][0])],
            "ids": pa.array([ids], pa.list_(pa.int64())),
            "hashes": pa.array([hashes], pa.list_(pa.int64())),
            "problem": pa.array([problem], pa.string()),
        }
    )
