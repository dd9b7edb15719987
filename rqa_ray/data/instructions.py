"""Collects the distinct instructions of training files, and names them as prompts of the model that is saved."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import pyarrow as pa

from rqa_ray.data.schema import QARecord
from rqa_ray.retriever.encoder_settings import ModelSpec, stored_prompts
from rqa_ray.texts import printable

MOST_PROMPTS = 20  # more are seldom the instructions of data sources, but texts that differ from record to record

Found = dict[str | None, None]  # distinct instructions in the order of the records; None for records without one
Part = tuple[int, str]  # number of a file, and what was found in a part of this file, as JSON


def collect(found: Found, record: QARecord) -> None:
    """Adds the instruction of a record that has a question, unless more are found than a model gets as prompts."""
    if record.questions and len(found) <= MOST_PROMPTS + 1:
        found.setdefault(record.instruction)


def to_json(found: Found) -> str:
    """Returns the value of the column `instructions`."""
    return json.dumps([*found])


def parts_of(tables: Sequence[pa.Table]) -> list[Part]:
    """Returns what was found in each part of the files, from blocks of `token_tables.SCHEMAS["train"]`."""
    rows = pa.concat_tables([table.select(["file", "line", "instructions"]) for table in tables])
    rows = rows.filter(rows["instructions"].is_valid()).sort_by([("file", "ascending"), ("line", "ascending")])
    return [(row["file"], row["instructions"]) for row in rows.to_pylist()]


def with_prompts(model: ModelSpec, parts: Iterable[Part], files: Sequence[str]) -> tuple[ModelSpec, list[str]]:
    """Returns the model with a prompt for each instruction, and a line for the user; no line without instructions.

    `parts` are in the order of the files. A prompt has the name that the model has for the same text. Else it has the
    name of its file, without suffixes, if all records of this file have the same instruction; else a number.
    """
    by_file: dict[int, Found] = {}
    for file, found in parts:
        by_file.setdefault(file, {}).update(dict.fromkeys(json.loads(found)))
    texts = [text for text in dict.fromkeys(itertools.chain(*by_file.values())) if text]
    if not texts:
        return model, []
    own = {"query": model.settings.query_prefix, "document": model.settings.passage_prefix}
    names = {text: name for name, text in (stored_prompts(model.folder) | own).items()}
    sources = {next(iter(one)): files[file] for file, one in reversed(by_file.items()) if len(one) == 1}
    for text in texts[:MOST_PROMPTS]:
        if text not in names:
            taken = {*stored_prompts(model.folder), *own, *names.values()}
            names[text] = next(name for name in _names(sources.get(text)) if name not in taken)
    prompts = {names[text]: text for text in texts[:MOST_PROMPTS]}
    more = len(texts) > MOST_PROMPTS
    number = f"more than {MOST_PROMPTS}" if more else f"{len(texts):,}"
    line = (
        f"instructions: {number} go before questions of the training files, in place of the query prefix; the saved "
        f"model has {f'the first {MOST_PROMPTS}' if more else 'them'} as prompts: {printable(', '.join(prompts))}"
    )
    return replace(model, prompts=tuple(prompts.items())), [line]


def _names(file: str | None) -> Iterator[str]:
    """Yields names for a prompt, the best first."""
    if file:
        yield PurePath(file).name.partition(".")[0]
    yield from (f"instruction-{number}" for number in itertools.count(1))
