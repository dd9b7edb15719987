"""Writes documents and question files as checked Parquet without duplicates, for `jobs/train.py --prepared_path`.

Each input becomes one file. `train`, `eval` and `test` have one row for each record: questions, instruction,
gold_docs, gold_passage_ids, hard_neg_docs, hard_negative_ids, hard_neg_scores, gold_scores, gold_grades. `corpus` has
one row for each distinct passage: passage_id, page_content, fmt_content, metadata as JSON. Order and records are those
of the input, so training makes the same global batches.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rqa_ray.cluster.connection import connect
from rqa_ray.corpus_settings import PrepareSettings
from rqa_ray.data import report
from rqa_ray.data.distinct import read_distinct
from rqa_ray.data.held_out import NOTHING
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.readers import hold_out, read_inputs
from rqa_ray.data.records import find_inputs, find_labels, good_records
from rqa_ray.data.schema import Document
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.survey import Survey
from rqa_ray.errors import InputError
from rqa_ray.job_output import JobResult
from rqa_ray.places import check_local_folder
from rqa_ray.retriever.encoder_settings import ModelSpec, encoder_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.tokenizer import check_model
from rqa_ray.settings import INPUTS
from rqa_ray.texts import as_utf8, command

ROWS_PER_GROUP = 1_000
NO_LIMIT = 1_000_000  # tokens, because the survey shows full lengths
_DOCUMENT = [("page_content", pa.string()), ("fmt_content", pa.string()), ("metadata", pa.string())]
_DOCUMENTS = pa.list_(pa.struct(_DOCUMENT))
_IDS = pa.list_(pa.int64())
SCHEMAS = {
    "documents": pa.schema([("passage_id", pa.int64()), *_DOCUMENT]),
    "questions": pa.schema(
        [
            ("questions", pa.list_(pa.string())),
            ("instruction", pa.string()),
            ("gold_docs", _DOCUMENTS),
            ("gold_passage_ids", _IDS),
            ("hard_neg_docs", _DOCUMENTS),
            ("hard_negative_ids", _IDS),
            ("hard_neg_scores", pa.list_(pa.float64())),
            ("gold_scores", pa.list_(pa.float64())),
            ("gold_grades", pa.list_(pa.float64())),
        ]
    ),
}


@dataclass
class PrepareResult(JobResult):
    """What is in the files of a training run."""

    output_dir: str
    questions: dict[str, int]  # by split
    passages: int
    missing_golds: dict[str, int]  # golds that the corpus lacks, by split
    bad_records: dict[str, int]  # records that were left out, by kind
    lines: list[str]  # all that is known about the data, for a person

    def describe(self) -> str:
        """Returns lines for a person."""
        go_on = command("jobs/train.py", "--prepared_path", self.output_dir)
        return "\n".join([*self.lines, f"written: {self.output_dir}; go on with {go_on} ..."])


def prepare(settings: PrepareSettings) -> PrepareResult:
    """Checks the files of a training run and writes them as Parquet.

    Tokens are counted as training counts them with the same model and settings.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written.
    """
    check_local_folder(settings.output_dir)
    folder = Path(settings.output_dir)
    if folder.exists():
        raise InputError(f"--output_dir {folder}: is there already; choose another or delete it")
    settings.check_files()
    skip_bad = settings.on_bad_record == "skip"
    given = {name: (flag, getattr(settings, flag)) for name, flag in INPUTS.items()}
    inputs = find_inputs(given, skip_bad, {"output_dir": settings.output_dir})
    labels = find_labels(settings.accepted_labels, inputs, skip_bad)
    model = find_model_folder(settings.model_name_or_path, settings.model_revision)
    spec = ModelSpec(model, encoder_settings(model, settings), settings.trust_remote_code)
    check_model(spec)
    print(f"Ray: {connect()}\nmodel: {settings.model_name_or_path}, {spec.settings.describe()}")
    return write_prepared(inputs, folder, spec, skip_bad, labels, settings.eval_share, settings.seed)


def write_prepared(
    inputs: dict[str, list[str]],
    folder: Path,
    spec: ModelSpec,
    skip_bad: bool,
    labels: Labels = NO_LABELS,
    eval_share: float | None = None,
    seed: int = 0,
) -> PrepareResult:
    """Writes the inputs (files by name) to a folder, all or nothing; holds out a share of train for eval.

    Raises:
        InputError: a bad record, or an input without records.
    """
    held_out, uncounted = NOTHING, Skipped()
    if eval_share:
        held_out, uncounted = hold_out(inputs["train"], eval_share, seed, skip_bad, labels)
        inputs = inputs | {"eval": inputs["train"]}
    unlimited = replace(spec.settings, max_seq_length=NO_LIMIT, query_length=None, document_length=None)
    blocks = read_inputs(inputs, replace(spec, settings=unlimited), skip_bad, labels, held_out)
    survey = Survey.of({name: part.tables() for name, part in blocks.items()})
    lines = [held_out.describe()] if eval_share else []
    lines += report.full(survey, spec.settings.max_seq_length)
    lines += labels.describe(survey.question_keys)
    skipped = Skipped.of([uncounted, *(part.skipped for part in blocks.values())])
    if skipped.kinds:
        lines.append(f"bad records, left out: {skipped.counts()}")
        lines += [f"  {problem}" for problem in skipped.first]
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for name, files in inputs.items():
            kind = "documents" if name == "corpus" else "questions"
            of_input = replace(labels, side=held_out.side(name))
            write(files, kind, staging / f"{name}.parquet", skip_bad, of_input)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    questions = {name: split.counts.num_questions for name, split in survey.splits.items()}
    missing = {name: len(ids) for name, ids in survey.missing.items()}
    written = [str(folder / f"{name}.parquet") for name in inputs]
    counts = questions, len(survey.passage_ids), missing, skipped.kinds
    return PrepareResult(str(folder), *counts, lines, files=written)


def write(files: list[str], kind: str, path: Path, skip_bad: bool, labels: Labels = NO_LABELS) -> None:
    """Writes the good records of some files as one Parquet file; of documents, only the distinct ones."""
    schema = SCHEMAS[kind]
    rows = _passages(files, skip_bad) if kind == "documents" else _records(files, skip_bad, labels)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _passages(files: list[str], skip_bad: bool) -> Iterator[dict[str, Any]]:
    for document in read_distinct(files, skip_bad):
        yield {"passage_id": document.passage_id, **_columns(document)}


def _records(files: list[str], skip_bad: bool, labels: Labels) -> Iterator[dict[str, Any]]:
    for record in good_records(files, "questions", skip_bad, labels):
        if record.questions:  # else all questions of the record are empty
            yield {
                "questions": [as_utf8(question) for question in record.questions],
                "instruction": record.instruction,
                "gold_docs": [_columns(document) for document in record.gold_docs],
                "gold_passage_ids": [document.passage_id for document in record.gold_docs],
                "hard_neg_docs": [_columns(document) for document in record.hard_neg_docs],
                "hard_negative_ids": [document.passage_id for document in record.hard_neg_docs],
                "hard_neg_scores": record.hard_neg_scores,
                "gold_scores": record.gold_scores,
                "gold_grades": record.gold_grades,
            }


def _columns(document: Document) -> dict[str, Any]:
    record = document.to_dict()
    return {
        "page_content": as_utf8(document.page_content),
        "fmt_content": as_utf8(record["fmt_content"]) if "fmt_content" in record else None,
        "metadata": json.dumps(document.metadata),
    }
