"""Files to tokenized blocks with Ray Data: parse, flatten to one row per question and gold passage, tokenize, once.

Each file, or range of a large one, is one task; its lines stream through in batches and leave as Arrow blocks in the
object store, which workers map without a copy (`rows.py`). Lines are parsed as text, since metadata is free-form and
differs from line to line. A bad line comes back as data, in the column `problem`, and the driver raises it as one
line; or, where it is to be skipped, in `skipped`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.records import read_records, record_ranges
from rqa_ray.data.token_tables import (
    SCHEMAS,
    Named,
    TokenizerSpec,
    document_rows,
    make_tokenizer,
    question_rows,
    to_table,
    train_rows,
)
from rqa_ray.errors import InputError

RANGE_BYTES = 32 * 2**20  # of one task
RECORDS_AT_ONCE = 256
SKIPPED_LISTED = 20
PROBLEM = ["file", "line", "problem"]


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


@dataclass
class Blocks:
    """One input, read: its blocks in the object store."""

    refs: list[ray.ObjectRef]
    dataset: ray.data.Dataset

    def tables(self, *columns: str) -> list[pa.Table]:
        """The blocks, all columns or only some; on another node than the blocks', only those columns travel."""
        return fetch_tables(self.dataset.select_columns(list(columns)).to_arrow_refs() if columns else self.refs)

    def skipped(self) -> Skipped:
        """The bad records of all files."""
        found = pa.concat_tables(self.tables("file", "line", "skipped"))
        found = found.filter(found["skipped"].is_valid()).sort_by([("file", "ascending"), ("line", "ascending")])
        return Skipped.of(Skipped(**json.loads(part)) for part in found["skipped"].to_pylist())


def fetch_tables(refs: list[ray.ObjectRef]) -> list[pa.Table]:
    """The blocks that are not empty; on their own node mapped without a copy."""
    return [table for table in ray.get(refs) if len(table)]


def read_inputs(inputs: dict[str, list[str]], spec: TokenizerSpec, skip_bad: bool = False) -> dict[str, Blocks]:
    """Reads `train`, `eval`, `test` and `corpus` (names to files) side by side.

    Raises:
        InputError: the first bad line of an input, or an input without records; with `skip_bad` only where no record
            of a file, or of a range of it, is right.
    """
    with ThreadPoolExecutor(len(inputs)) as pool:
        read = functools.partial(_read, spec=spec, skip_bad=skip_bad)
        return dict(zip(inputs, pool.map(read, inputs.keys(), inputs.values()), strict=True))


def _read(name: str, files: list[str], spec: TokenizerSpec, skip_bad: bool) -> Blocks:
    kind = name if name in SCHEMAS else "questions"
    items = [
        {"file": index, "path": path, "start": start, "end": -1 if end is None else end}
        for index, path in enumerate(files)
        for start, end in record_ranges(path, RANGE_BYTES)
    ]
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(_read_file, batch_size=1, fn_kwargs={"kind": kind, "spec": spec, "skip_bad": skip_bad})
        .materialize()
    )
    blocks = Blocks(dataset.to_arrow_refs(), dataset)
    found = pa.concat_tables([SCHEMAS[kind].empty_table().select(PROBLEM), *blocks.tables(*PROBLEM)])
    without = set(range(len(files))) - set(found["file"].to_pylist())
    if without:  # a large file of blank lines; a small one has said so itself
        raise InputError(f"{files[min(without)]}: no records in it")
    problems = found.filter(found["problem"].is_valid()).sort_by([("file", "ascending"), ("line", "ascending")])
    if len(problems):
        raise InputError(problems["problem"][0].as_py())
    return blocks


def _read_file(batch: dict[str, np.ndarray], kind: str, spec: TokenizerSpec, skip_bad: bool) -> Iterator[pa.Table]:
    """A file or a range of it to tables of one schema; stops at the first bad record, and returns it as `problem`."""
    path, file = str(batch["path"][0]), int(batch["file"][0])
    start, end = int(batch["start"][0]), int(batch["end"][0])
    bring_model(spec.folder, spec.copy)
    tokenizer = make_tokenizer(spec)
    tokenizer.num_texts = tokenizer.num_truncated = 0
    named: Named = set()
    to_rows: Any = {
        "train": functools.partial(train_rows, named=named),
        "questions": question_rows,
        "corpus": document_rows,
    }[kind]
    records = read_records(path, "documents" if kind == "corpus" else "questions", start, None if end < 0 else end)
    problem, empty, num_empty, skipped = None, True, 0, Skipped()
    held: list[dict[str, Any]] = []  # one batch of rows; the file's counts go with its last one
    while not problem:
        good: list[tuple[int, Any]] = []
        seen = 0
        for line, record in islice(records, RECORDS_AT_ONCE):
            seen += 1
            if not isinstance(record, str):
                good.append((line, record))
            elif skip_bad and line:  # line 0: the file as a whole
                skipped.add(record, path)
            else:
                problem = record
                break
        if not good:
            if problem or not seen:
                break
            continue
        empty = False
        num_empty += sum(getattr(record, "num_empty_questions", 0) for _, record in good)
        rows = to_rows(good, tokenizer)
        for row in rows:
            row |= {"file": file, "num_texts": 0, "num_truncated": 0, "num_empty_questions": 0}
        if rows and held:
            yield to_table(held, kind)
        held = rows or held
    if held:
        counts = {"num_texts": tokenizer.num_texts, "num_truncated": tokenizer.num_truncated}
        held[0] |= {**counts, "num_empty_questions": num_empty}
        held[0] |= {"skipped": json.dumps(vars(skipped))} if skipped.first else {}
        yield to_table(held, kind)
    elif skipped.first:
        problem = f"{path}: all its {sum(skipped.kinds.values()):,} records are bad; the first: {skipped.first[0]}"
    elif not problem and not (empty and end >= 0):
        problem = f"{path}: {'no records in it' if empty else 'all its questions are empty'}"
    if problem:
        yield to_table([{"file": file, "line": 0, "problem": problem}], kind)
