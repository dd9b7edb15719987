"""Writes the suspects of a run: passages that mining in training has left out, and that may be answers.

The files are those of jobs/mine.py: suspects.jsonl, and suspects.html, on which a person decides. They are about the
round of mining that was in use at the end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
from pyarrow import fs

from rqa_ray.corpus.mined_files import SUSPECTS_FILE, Suspect, write_suspects
from rqa_ray.corpus.plan import Range, group_ranges
from rqa_ray.data.distinct import places_of
from rqa_ray.data.labels import Labels
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document, QARecord, question_key
from rqa_ray.evaluation.predictions import Documents
from rqa_ray.places import absolute, inside, shown
from rqa_ray.reports.suspects_page import PAGE_FILE, write_suspects_page
from rqa_ray.training.checkpoints import StoredCheckpoint
from rqa_ray.training.rounds import NEGATIVES_FILE, SUSPECT

# A question, its instruction, and its golds by id.
Asked = tuple[str, str | None, dict[int, Document]]


def write_run_suspects(
    folder: Path,
    location: str,
    checkpoint: StoredCheckpoint,
    train_files: list[str],
    labels: Labels,
    corpus: Documents,
) -> list[str]:
    """Writes the suspects of a checkpoint's round into a folder, whose files go to a location.

    Returns a line for the user: where to decide about them, or why they could not be written; none if there are none.
    """
    try:
        found = read_suspects(checkpoint)
        if not len(found):
            return []
        asked = read_asked(train_files, labels, set(found["question"].tolist()))
        number = write_suspects(folder / SUSPECTS_FILE, suspects_in(found, asked, corpus))
        write_suspects_page(folder, Path(shown(absolute(location))).name)
    except Exception as error:  # whatever is wrong with a page, the work of hours must not be lost for it
        for name in (SUSPECTS_FILE, PAGE_FILE):
            (folder / name).unlink(missing_ok=True)
        return [f"warning: no {SUSPECTS_FILE}: {type(error).__name__}: {error}; all other files are whole"]
    return [f"suspects: {number:,} passages that mining left out may be answers: {shown(inside(location, PAGE_FILE))}"]


def read_suspects(checkpoint: StoredCheckpoint) -> np.ndarray:
    """Returns the suspects of the round that a checkpoint has, as an array of `rounds.SUSPECT`."""
    path, filesystem = f"{checkpoint.path}/{NEGATIVES_FILE}", checkpoint.filesystem
    if filesystem.get_file_info(path).type == fs.FileType.File:
        with filesystem.open_input_file(path) as file, np.load(io.BytesIO(file.read())) as kept:
            if "suspects" in kept:  # an earlier version only counted them
                return kept["suspects"]
    return np.zeros(0, SUSPECT)


def read_asked(train_files: list[str], labels: Labels, keys: set[int]) -> dict[int, Asked]:
    """Returns the questions of training files that have these keys, with all of their golds."""
    given = ray.put(labels), ray.put(keys)
    asked: dict[int, Asked] = {}
    for part in ray.get([_read_asked.remote(ranges, *given) for ranges in group_ranges(train_files)]):
        for key, found in part.items():
            asked.setdefault(key, found)[2].update(found[2])
    return asked


@ray.remote
def _read_asked(ranges: list[Range], labels: Labels, keys: set[int]) -> dict[int, Asked]:
    return asked_in(ranges, labels, keys)


def asked_in(ranges: list[Range], labels: Labels, keys: set[int]) -> dict[int, Asked]:
    """Does `read_asked` for some ranges of files."""
    asked: dict[int, Asked] = {}
    for path, start, end in ranges:
        for _, record in read_records(path, "questions", start, end, labels):
            if not isinstance(record, QARecord):  # bad records were reported when the files were first read
                continue
            for question in record.questions:
                key = question_key(question, record.instruction)
                if key in keys:
                    golds = asked.setdefault(key, (question, record.instruction, {}))[2]
                    golds.update({gold.passage_id: gold for gold in record.gold_docs})
    return asked


def suspects_in(found: np.ndarray, asked: dict[int, Asked], corpus: Documents) -> Iterator[Suspect]:
    """Yields the suspects of an array of `rounds.SUSPECT` with their texts."""
    places = places_of(found["passage"], corpus.passage_ids)
    for row, place in zip(found, places.tolist(), strict=True):
        key = int(row["question"])
        question, instruction, golds = asked[key]
        yield Suspect(
            key,
            question,
            instruction,
            [*golds.values()],
            float(row["gold_score"]),
            Document(**corpus.document(place)),
            float(row["score"]),
            int(row["dense_rank"]),
            int(row["bm25_rank"]),
        )
