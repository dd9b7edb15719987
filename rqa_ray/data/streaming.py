"""Streams training files that do not fit in memory: counts them once, then tokenizes one window at a time.

1. `open_stream` parses all training files before training. So a bad line is reported at the start and not at step
   10,000, and the number of rows in each part of a file is known.
2. While workers train, Ray tasks make the windows that come next for the `WindowStore`. The store keeps the few
   windows in use in the object store, where workers map them without a copy.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data import instructions
from rqa_ray.data.columns import inner
from rqa_ray.data.counts import Counts, Sample, record_bytes
from rqa_ray.data.files import has_suffix, text_bytes
from rqa_ray.data.held_out import ALL_RECORDS
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.readers import RANGE_BYTES, RECORDS_AT_ONCE
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.schema import QARecord, text_hash
from rqa_ray.data.share import ALL, PairsInShare, Share
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.sources import PairsBySource, Sources
from rqa_ray.data.token_tables import Named, make_tokenizer, to_table, train_rows, with_tokenizer
from rqa_ray.data.windows import PART_BYTES, WINDOW_BYTES, Part, WindowPlan
from rqa_ray.errors import InputError
from rqa_ray.places import shown
from rqa_ray.retriever.encoder_settings import ModelSpec

SMALLEST_PART = 2**14
LARGEST_PART = 4 * WINDOW_BYTES
LOOKED_AT_BYTES = 2**30  # of text that is checked for passages that clash; the check holds a few MB
RESIDENT_SHARE = 0.4  # share of a node's object store that training rows may take
WINDOWS_AHEAD, WINDOWS_KEPT = 2, 5


@dataclass
class Stream:
    """The training files, counted."""

    parts: list[Part]
    num_rows: np.ndarray  # (P,) rows in each part: one for each question and gold passage
    num_questions: np.ndarray  # (P,) questions in each part
    counts: Counts
    skipped: Skipped
    window_bytes: int  # text of one window; its rows take about `WINDOW_BYTES`
    spec: ModelSpec
    labels: Labels
    labeled: set[int]  # keys of the questions for which a passage was accepted
    share: Share
    instructions: list[instructions.Part]

    def report(self) -> str:
        """Returns a line for the user."""
        return (
            f"data: train {self.counts.num_questions:,} questions, streamed: tokenized anew in every epoch, shuffled "
            f"in windows of {self.window_bytes / 2**20:.0f} MB that mix {WINDOW_BYTES // PART_BYTES} places of files"
        )

    @property
    def shared(self) -> PairsInShare:
        """How many pairs are in the share."""
        rows = self.counts.num_rows
        return PairsInShare(self.share, rows, rows + self.counts.num_left_out)

    def by_source(self, sources: Sources) -> PairsBySource:
        """Returns the rows of the share by source."""
        found = np.array(sources.of_files)[[part.file for part in self.parts]]
        return PairsBySource(sources.names, found, self.num_rows, self.num_questions)

    def serve(self, seed: int, busy_cpus: int) -> tuple[WindowPlan, Any]:
        """Returns the order of the rows, and the store from which workers fetch windows."""
        free_cpus = ray.cluster_resources().get("CPU", 0) - busy_cpus
        plan = WindowPlan(self.parts, self.num_rows, seed, self.window_bytes)
        # A task that asks for a CPU would wait for ever if the workers hold all CPUs.
        given = (plan, with_tokenizer(self.spec), [ray.put(self.labels)], self.share, int(free_cpus >= 1))
        return plan, WindowStore.remote(*given)  # type: ignore[attr-defined]


def is_too_large(files: list[str], spec: ModelSpec, labels: Labels = NO_LABELS) -> bool:
    """Returns whether the tokenized rows of training files would take too much of the object store."""
    # Of all records: those of the sample may all be held out, and a sample of none would bound nothing.
    sample = Sample.of(files, replace(labels, side=ALL_RECORDS))
    tokenized = expansion(sample, spec) * record_bytes(files, sample)
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return tokenized > RESIDENT_SHARE * min(stores)


def expansion(sample: Sample, spec: ModelSpec) -> float:
    """Measures how many bytes of rows one byte of text becomes.

    A record makes one row for each pair of a question and a gold, so rows can be larger than the file.
    """
    return to_table(train_rows(sample.records, make_tokenizer(spec), set()), "train").nbytes / max(sample.num_bytes, 1)


def open_stream(
    files: list[str], spec: ModelSpec, skip_bad: bool = False, labels: Labels = NO_LABELS, share: Share = ALL
) -> Stream:
    """Parses all training files and counts their rows in the share; one task parses a group of parts.

    Raises:
        InputError: a bad line; passages that clash (in files larger than 1 GB, only a share of them is checked); a
            file without records; or a file that has to be read at once and is too large for it.
    """
    # Of all records: those of the sample may all be held out, and a sample of none would bound nothing.
    sample = Sample.of(files, replace(labels, side=ALL_RECORDS))
    times = max(1.0, expansion(sample, spec))
    part_bytes = max(SMALLEST_PART, int(PART_BYTES / times))
    sizes_of_files = [int(record_bytes([path], sample)) for path in files]
    parts = [
        part for number, size in enumerate(sizes_of_files) for part in _parts(number, files[number], size, part_bytes)
    ]
    sizes = np.cumsum([part.num_bytes for part in parts])
    tasks = np.split(np.arange(len(parts)), np.flatnonzero(np.diff(sizes // RANGE_BYTES)) + 1)
    looked_at = 1 + int(sizes[-1]) // LOOKED_AT_BYTES
    items = [{"parts": json.dumps([(int(number), *parts[number]) for number in numbers])} for numbers in tasks]
    given = {"skip_bad": skip_bad, "looked_at": looked_at, "labels": labels, "share": share}
    counted = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(_count, batch_size=1, fn_kwargs=given)
        .materialize()
    )
    table = pa.concat_tables(ray.get(counted.to_arrow_refs())).sort_by("part")
    problems = table["problem"].drop_null()
    if len(problems):
        raise InputError(problems[0].as_py())
    skipped = Skipped.of(Skipped(**json.loads(text)) for text in table["skipped"].to_pylist())
    ids, hashes = (inner([table], name) for name in ("passage_ids", "text_hashes"))
    skipped.add_clashes(ids, hashes, files, "questions", skip_bad, labels)
    # All data may have millions of parts, so their numbers stay columns: an object for each would take 2 KB.
    counts = Counts.of({name: table[name].to_numpy() for name in vars(Counts())})
    num_rows = table["num_rows"].to_numpy()
    read = num_rows + table["num_left_out"].to_numpy()
    in_file = np.bincount([part.file for part in parts], read, minlength=len(files))
    for path, number in zip(files, in_file, strict=True):
        if not number and labels.side.is_all:
            raise InputError(f"{shown(path)}: it has no good record with a question")
    labeled = set(inner([table], "labeled").tolist())
    window_bytes = int(WINDOW_BYTES / times)
    texts = zip(parts, table["instructions"], strict=True)
    found = [*dict.fromkeys((part.file, text.as_py()) for part, text in texts)]  # most parts have the same
    rows = num_rows, table["num_questions"].to_numpy()
    return Stream(parts, *rows, counts, skipped, window_bytes, spec, labels, labeled, share, found)


def _parts(number: int, path: str, size: int, part_bytes: int) -> Iterator[Part]:
    """Cuts a file whose records have `size` bytes into parts of about `part_bytes`."""
    is_parquet = has_suffix(path, ".parquet")
    ranges = record_ranges(path, part_bytes * text_bytes(path) // max(size, 1))  # records may be larger than the file
    for start, end in ranges:  # bytes, or rows of Parquet
        num_bytes = size if end is None else size * (end - start) // (ranges[-1][1] or 1)
        if num_bytes > LARGEST_PART:
            piece = "a row group" if is_parquet else "a compressed file or a CSV or a BEIR folder"
            raise InputError(
                f"{shown(path)}: {piece} of about {num_bytes / 1e9:.1f} GB has to be read in one piece, which is too "
                "much to stream; convert it with jobs/prepare.py or decompress it, or --data_mode resident"
            )
        yield Part(number, path, start, end, max(1, num_bytes))


COUNTED = pa.schema(
    [("part", pa.int64()), *((name, pa.int64()) for name in vars(Counts()))]
    + [(name, pa.string()) for name in ("problem", "skipped", "instructions")]
    + [(name, pa.list_(pa.int64())) for name in ("passage_ids", "text_hashes", "labeled")]
)


def _count(
    batch: dict[str, np.ndarray], skip_bad: bool, looked_at: int, labels: Labels, share: Share
) -> Iterator[pa.Table]:
    for number, *place in json.loads(batch["parts"][0]):
        yield _count_part(number, Part(*place), skip_bad, looked_at, labels, share)


def _count_part(number: int, part: Part, skip_bad: bool, looked_at: int, labels: Labels, share: Share) -> pa.Table:
    counts, skipped, problem = Counts(), Skipped(), None
    texts: set[tuple[int, int]] = set()  # passage ids and text hashes; of all ids, one in `looked_at` is checked
    labeled: set[int] = set()
    found: instructions.Found = {}
    for line, record in read_records(part.path, "questions", part.start, part.end, labels):
        if isinstance(record, QARecord):
            counts.add(record, share)
            instructions.collect(found, record)
            labeled |= labels.keys_in(record)
            ids = ((document, document.passage_id) for document in record.passages)
            texts |= {(one, text_hash(document.fmt_content)) for document, one in ids if one % looked_at == 0}
        elif skip_bad and line:
            skipped.add(str(record), shown(part.path))
        else:
            problem = str(record)
            break
    row = {"part": number, **vars(counts), "problem": problem, "skipped": json.dumps(vars(skipped))}
    row |= {"instructions": instructions.to_json(found)}
    row |= {"passage_ids": [one for one, _ in texts], "text_hashes": [digest for _, digest in texts]}
    return pa.Table.from_pylist([row | {"labeled": [*labeled]}], COUNTED)


@ray.remote(num_cpus=0)
class WindowStore:
    """Lets Ray tasks make windows ahead of the workers, and keeps the windows in use; a window is always the same."""

    def __init__(
        self, plan: WindowPlan, spec: ModelSpec, labels: list[ray.ObjectRef], share: Share, num_cpus: int
    ) -> None:
        """Takes a reference to the labels in a list, so that Ray does not fetch them here."""
        self._plan, self._spec, self._share, self._num_cpus = plan, spec, share, num_cpus
        self._labels = labels[0]
        self._refs: OrderedDict[tuple[int, int], ray.ObjectRef] = OrderedDict()  # in the order of their last use

    def window(self, epoch: int, window: int) -> list[ray.ObjectRef]:
        """Returns a window's tokenized table; it is in a list, so that Ray does not fetch it here."""
        wanted = [(epoch, window)]
        for _ in range(WINDOWS_AHEAD):
            last, number = wanted[-1]
            is_last = number + 1 == len(self._plan.epoch(last).parts)
            wanted.append((last + 1, 0) if is_last else (last, number + 1))
        for key in wanted:
            if key not in self._refs:
                numbers = self._plan.epoch(key[0]).parts[key[1]]
                parts = [self._plan.parts[number] for number in sorted(numbers)]
                expected = int(self._plan.num_rows[numbers].sum())
                read = _read_window.options(num_cpus=self._num_cpus)
                self._refs[key] = read.remote(parts, expected, self._spec, self._labels, self._share)
            self._refs.move_to_end(key)
        while len(self._refs) > WINDOWS_KEPT:
            self._refs.popitem(last=False)
        return [self._refs[wanted[0]]]


@ray.remote
def _read_window(parts: list[Part], expected: int, spec: ModelSpec, labels: Labels, share: Share) -> pa.Table:
    bring_model(spec.folder, spec.copy)
    tables, tokenizer = [], make_tokenizer(spec)
    named: Named = set()
    for part in parts:
        records = read_records(part.path, "questions", part.start, part.end, labels)
        good = ((line, record) for line, record in records if isinstance(record, QARecord) and share.has(record))
        while some := list(islice(good, RECORDS_AT_ONCE)):
            rows: list[dict[str, Any]] = train_rows(some, tokenizer, named)
            tables.append(to_table([row | {"file": part.file} for row in rows], "train"))
    table = pa.concat_tables(tables).combine_chunks()
    if len(table) != expected:
        paths = ", ".join(dict.fromkeys(shown(part.path) for part in parts))
        raise RuntimeError(f"{paths}: {len(table):,} rows where {expected:,} were counted; a file changed in training")
    return table


def fetcher(store: Any) -> Callable[[int, int], pa.Table]:
    """Returns the function with which `WindowedRows` fetches a window in a worker."""
    return lambda epoch, window: ray.get(ray.get(store.window.remote(epoch, window))[0])
