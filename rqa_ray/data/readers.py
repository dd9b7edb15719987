"""Reads files with Ray Data: parses them, makes one row for each question and gold passage, and tokenizes it once.

Each file, or each range of a large file, is one task. Its rows leave in batches as Arrow blocks in the object store,
which workers map without a copy (`rows.py`). Lines are parsed as text, because metadata differs from line to line. The
task returns a bad line as data, in the column `problem`, and the driver raises one line about it. If bad lines are to
be skipped, they are in the column `skipped`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data import instructions
from rqa_ray.data.columns import column, inner
from rqa_ray.data.held_out import LINKS, NOTHING, HeldOut, Side, links_of
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.schema import QARecord
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.token_tables import (
    SCHEMAS,
    document_rows,
    make_tokenizer,
    question_rows,
    to_table,
    train_rows,
    with_tokenizer,
)
from rqa_ray.errors import InputError
from rqa_ray.places import shown
from rqa_ray.retriever.encoder_settings import ModelSpec

RANGE_BYTES = 32 * 2**20  # what one task reads
RECORDS_AT_ONCE = 256
# Columns that stay in the object store. The driver gets the other columns.
LARGE = ("question", "instruction", "question_tokens", "gold_doc", "new_passage_tokens", "tokens", "document")


@dataclass
class Blocks:
    """One input that was read: its blocks in the object store."""

    refs: list[ray.ObjectRef]
    small: list[pa.Table]  # on the driver: the blocks without texts and tokens
    skipped: Skipped  # bad records of all files that were skipped

    def tables(self) -> list[pa.Table]:
        """Returns the whole blocks."""
        return fetch_tables(self.refs)


def fetch_tables(refs: list[ray.ObjectRef]) -> list[pa.Table]:
    """Returns the blocks that are not empty; blocks on this node are mapped without a copy."""
    return [table for table in ray.get(refs) if len(table)]


def read_inputs(
    inputs: dict[str, list[str]],
    spec: ModelSpec,
    skip_bad: bool = False,
    labels: Labels = NO_LABELS,
    held_out: HeldOut = NOTHING,
) -> dict[str, Blocks]:
    """Reads `train`, `eval`, `test` and `corpus` (files by name) in parallel.

    If eval questions are held out, `train` and `eval` are the same files, and each gets its own side of the records.

    Raises:
        InputError: a bad line, two passages that clash (`distinct.py`), or an input without records. With `skip_bad`,
            a bad line is an error only if its file, or range of a file, has no good one.
    """
    with ThreadPoolExecutor(len(inputs)) as pool:
        sides = [replace(labels, side=held_out.side(name)) for name in inputs]
        # one copy for all inputs, because labels may hold the whole corpus
        read = functools.partial(_read, shared=ray.put(labels), spec=with_tokenizer(spec), skip_bad=skip_bad)
        blocks = dict(zip(inputs, pool.map(read, inputs.keys(), inputs.values(), sides), strict=True))
    if held_out.sources and "eval" in blocks:
        blocks["eval"].skipped = Skipped()  # the bad records of the same files are counted with train
    return blocks


def hold_out(
    files: list[str], share: float, seed: int, skip_bad: bool = False, labels: Labels = NO_LABELS
) -> tuple[HeldOut, Skipped]:
    """Reads all training records, and chooses the share of the questions that becomes the eval questions.

    Also returns the bad records of those parts of files that have no other record of train. Bad records of other parts
    are counted, or reported, when the files are read for training.

    Raises:
        InputError: no questions can be held out, a file has none, or a record is bad. With `skip_bad`, a bad record is
            an error only if its file has no good one.
    """
    items = [{"part": part, **place} for part, place in enumerate(_parts(files))]
    given = {"labels": [ray.put(labels)]}
    read = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read_links, batch_size=1, fn_kwargs=given
    )
    table = pa.concat_tables(fetch_tables(read.materialize().to_arrow_refs()) or [LINKS.empty_table()])
    links, bad = table.filter(pc.is_null(table["skipped"])), table.filter(pc.is_valid(table["skipped"]))
    bad = bad.sort_by("part")
    without = set(range(len(files))) - set(links["file"].to_pylist())
    for file, text in zip(bad["file"].to_pylist(), bad["skipped"].to_pylist(), strict=True):
        if not skip_bad or file in without:
            raise InputError(Skipped(**json.loads(text)).first[0])
    if without:
        raise InputError(f"{shown(files[min(without)])}: it has no record with a question")
    found = HeldOut.of([links], share, seed)
    of_train = ~np.isin(column([links], "source_key"), list(found.sources))
    counted = set(column([links], "part")[of_train].tolist())
    skipped = zip(bad["part"].to_pylist(), bad["skipped"].to_pylist(), strict=True)
    return found, Skipped.of(Skipped(**json.loads(text)) for part, text in skipped if part not in counted)


def _parts(files: list[str]) -> list[dict[str, Any]]:
    """Returns what each task reads."""
    return [
        {"file": index, "path": path, "start": start, "end": -1 if end is None else end}
        for index, path in enumerate(files)
        for start, end in record_ranges(path, RANGE_BYTES)
    ]


def _read_links(batch: dict[str, np.ndarray], labels: list[ray.ObjectRef]) -> pa.Table:
    path, start, end = str(batch["path"][0]), int(batch["start"][0]), int(batch["end"][0])
    place = {"part": int(batch["part"][0]), "file": int(batch["file"][0])}
    rows: list[dict[str, Any]] = []
    skipped = Skipped()
    for _, record in read_records(path, "questions", start, None if end < 0 else end, ray.get(labels[0])):
        if isinstance(record, QARecord):
            rows += [{**place, **links_of(record)}] if record.questions else []
        else:
            skipped.add(str(record), shown(path))
    rows += [{**place, "skipped": json.dumps(vars(skipped))}] if skipped.first else []
    return pa.Table.from_pylist(rows, LINKS)


def _read(
    name: str, files: list[str], labels: Labels, shared: ray.ObjectRef, spec: ModelSpec, skip_bad: bool
) -> Blocks:
    kind = name if name in SCHEMAS else "questions"
    items = _parts(files)
    given = {"kind": kind, "spec": spec, "skip_bad": skip_bad, "labels": [shared], "side": labels.side}
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(_read_file, batch_size=1, fn_kwargs=given)
        .materialize()
    )
    columns = [name for name in SCHEMAS[kind].names if name not in LARGE]
    small = fetch_tables(dataset.select_columns(columns).to_arrow_refs())
    found = pa.concat_tables([SCHEMAS[kind].empty_table().select(columns), *small])
    found = found.select(["file", "line", "problem", "skipped"])
    found = found.sort_by([("file", "ascending"), ("line", "ascending")])
    without = set(range(len(files))) - set(found["file"].to_pylist())
    if without and labels.side.is_all:  # a large file of blank lines; for a small file the task has said so
        raise InputError(f"{files[min(without)]}: no records in it")
    problems = found["problem"].drop_null()
    if len(problems):
        raise InputError(problems[0].as_py())
    skipped = Skipped.of(Skipped(**json.loads(part)) for part in found["skipped"].drop_null().to_pylist())
    if kind == "train":
        ids, hashes = (inner(small, name) for name in ("new_passage_ids", "new_passage_hashes"))
        skipped.add_clashes(ids, hashes, files, "questions", skip_bad, labels)
    elif kind == "corpus":
        ids, hashes = (column(small, name) for name in ("passage_id", "text_hash"))
        skipped.add_clashes(ids, hashes, files, "documents", skip_bad)
    return Blocks(dataset.to_arrow_refs(), small, skipped)


def _read_file(
    batch: dict[str, np.ndarray], kind: str, spec: ModelSpec, skip_bad: bool, labels: list[ray.ObjectRef], side: Side
) -> Iterator[pa.Table]:
    """Reads a file, or a range of it, into tables of one schema.

    `labels` is a reference in a list, so that Ray does not fetch it for each call: labels may hold the whole corpus.
    Stops at the first bad record and returns `problem`.
    """
    path, file = str(batch["path"][0]), int(batch["file"][0])
    start, end = int(batch["start"][0]), int(batch["end"][0])
    bring_model(spec.folder, spec.copy)
    tokenizer = make_tokenizer(spec)
    tokenizer.num_texts = tokenizer.num_truncated = 0
    to_rows: Any = {"questions": question_rows, "corpus": document_rows}.get(kind)
    to_rows = to_rows or functools.partial(train_rows, named=set())
    records_are = "documents" if kind == "corpus" else "questions"
    known: Labels = replace(ray.get(labels[0]), side=side)
    records = read_records(path, records_are, start, None if end < 0 else end, known)
    problem, empty, num_empty, skipped = None, True, 0, Skipped()
    found: instructions.Found = {}
    held: list[dict[str, Any]] = []  # one batch of rows; the last batch brings the counts of the file
    while not problem:
        good: list[tuple[int, Any]] = []
        seen = 0
        for line, record in islice(records, RECORDS_AT_ONCE):
            seen += 1
            if not isinstance(record, str):
                good.append((line, record))
            elif skip_bad and line:  # line 0 means the whole file
                skipped.add(record, shown(path))
            else:
                problem = record
                break
        if not good:
            if problem or not seen:
                break
            continue
        empty = False
        num_empty += sum(getattr(record, "num_empty_questions", 0) for _, record in good)
        for _, record in good if kind == "train" else ():
            instructions.collect(found, record)
        rows = to_rows(good, tokenizer)
        for row in rows:
            row |= {"file": file, "num_texts": 0, "num_truncated": 0, "num_empty_questions": 0}
        if rows and held:
            yield to_table(held, kind)
        held = rows or held
    if held:
        counts = {"num_texts": tokenizer.num_texts, "num_truncated": tokenizer.num_truncated}
        held[0] |= {**counts, "num_empty_questions": num_empty, "instructions": instructions.to_json(found)}
        held[0] |= {"skipped": json.dumps(vars(skipped))} if skipped.first else {}
        yield to_table(held, kind)
    elif known.side.is_all:  # else all its records may be on the other side
        if skipped.first:
            number = sum(skipped.kinds.values())
            problem = f"{shown(path)}: all its {number:,} records are bad; the first: {skipped.first[0]}"
        elif not problem and not (empty and end >= 0):
            problem = f"{shown(path)}: {'no records in it' if empty else 'all its questions are empty'}"
    if problem:
        yield to_table([{"file": file, "line": 0, "problem": problem}], kind)
