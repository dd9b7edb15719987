"""Shows questions and passages as people read them; writes and reads the files of retrieved passages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, input_order
from rqa_ray.data.rows import distinct_documents, first_of_question, graded_golds
from rqa_ray.data.schema import Document, grades_entry, instruction_entry
from rqa_ray.errors import InputError
from rqa_ray.evaluation.confidence import Clusters
from rqa_ray.evaluation.metrics import LABELS

PASSAGES_FILE = "predictions-passages.jsonl"


class Documents:
    """The documents that rankings point to, in the order of `rows.Corpus`."""

    def __init__(self, tables: list[pa.Table]) -> None:
        self._documents = pa.chunked_array([chunk for table in tables for chunk in table["document"].chunks])
        self._order = distinct_documents(tables)
        self.passage_ids = column(tables, "passage_id")[self._order]

    def document(self, position: int) -> dict[str, Any]:
        return json.loads(self._documents[int(self._order[position])].as_py())

    def texts(self) -> list[str]:
        """Returns the embedded texts of all documents."""
        return [Document(**self.document(place)).fmt_content for place in range(len(self._order))]


class AskedQuestions:
    """The questions and gold documents of one split, in the order of `rows.Questions`."""

    def __init__(self, tables: list[pa.Table]) -> None:
        order = input_order(tables)
        first = first_of_question(tables, order)
        columns = ["question", "instruction", "question_key", "gold_doc", "passage_id"]
        table = pa.concat_tables([part.select(columns) for part in tables])
        rows = table.take(pa.array(order)).to_pylist()
        self.questions = [rows[row]["question"] for row in first]
        self.instructions = [rows[row]["instruction"] for row in first]
        self.keys = [rows[row]["question_key"] for row in first]
        by_key: dict[int, dict[int, str]] = {}
        for row in rows:
            by_key.setdefault(row["question_key"], {})[row["passage_id"]] = row["gold_doc"]
        self._golds = [by_key[key] for key in self.keys]
        self.gold_ids = graded_golds(tables, order).select(first)

    @cached_property
    def clusters(self) -> Clusters:
        """Which questions tend to be right or wrong together."""
        documents = [(Document(**json.loads(text)) for text in golds.values()) for golds in self._golds]
        return Clusters.of(self.gold_ids, [[document.source_id for document in golds] for golds in documents])

    def gold_docs(self, question: int) -> list[Document]:
        return [Document(**json.loads(text)) for text in self._golds[question].values()]


@dataclass
class Ranked:
    """The passages that a retriever found for the questions of one split, best first."""

    asked: AskedQuestions
    scores: np.ndarray  # (Q, K)
    positions: np.ndarray  # (Q, K) places in the corpus
    values: dict[str, np.ndarray]  # (Q,) by metric, from `question_metrics`


def write_predictions(
    folder: Path, splits: Mapping[str, Ranked], documents: Callable[[int], dict[str, Any]], top_k: int
) -> None:
    """Writes one line for each question: its metrics, the ids and grades of its golds, and its best passages.

    The passages that these lines name stand in one file beside, each once. `documents` returns the document at a
    position.
    """
    written: set[int] = set()
    with (folder / PASSAGES_FILE).open("w", encoding="utf-8") as texts:

        def name(document: Document) -> dict[str, Any]:
            entry: dict[str, Any] = {"passage_id": document.passage_id}
            if document.passage_id not in written:
                written.add(document.passage_id)
                texts.write(json.dumps({**entry, **document.to_dict()}) + "\n")
            return entry

        for split, ranked in splits.items():
            with (folder / predictions_file(split)).open("w", encoding="utf-8") as file:
                for row, question in enumerate(ranked.asked.questions):
                    golds, grades = ranked.asked.gold_docs(row), ranked.asked.gold_ids.grades_of(row)
                    best = zip(ranked.positions[row, :top_k], ranked.scores[row, :top_k], strict=True)
                    record = {
                        "question": question,
                        **instruction_entry(ranked.asked.instructions[row]),
                        "metrics": {label: float(ranked.values[metric][row]) for label, metric in LABELS.items()},
                        "gold_docs": [name(gold) for gold in golds],
                        **grades_entry([grades[gold.passage_id] for gold in golds]),
                        "retrieved_docs": [
                            {**name(Document(**documents(int(position)))), "score": float(score)}
                            for position, score in best
                        ],
                    }
                    file.write(json.dumps(record) + "\n")


def read_predictions(folder: Path, split: str) -> list[dict[str, Any]]:
    """Returns the lines of a predictions file, with the text and metadata of each passage put in."""
    passages = {passage["passage_id"]: passage for passage in _lines(folder / PASSAGES_FILE)}
    records = _lines(folder / predictions_file(split))
    for record in records:
        for name in ("gold_docs", "retrieved_docs"):
            record[name] = [{**passages[entry["passage_id"]], **entry} for entry in record[name]]
    return records


def read_values(folder: Path, split: str, asked: AskedQuestions) -> dict[str, np.ndarray]:
    """Returns (Q,) values by metric, as `question_metrics` does, from a predictions file.

    Raises:
        InputError: the file has other questions, golds or grades, or no metrics.
    """
    path = folder / predictions_file(split)
    try:
        lines = _lines(path)
        ids = [[entry["passage_id"] for entry in line["gold_docs"]] for line in lines]
        grades = [line.get("gold_grades", [1.0] * len(of)) for line, of in zip(lines, ids, strict=True)]
        golds = [dict(zip(*graded, strict=True)) for graded in zip(ids, grades, strict=True)]
        metrics = [line["metrics"] for line in lines]
        values = {metric: np.array([float(of[label]) for of in metrics]) for label, metric in LABELS.items()}
        questions = [line["question"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: was not written by this version of jobs/evaluate.py ({error!r:.80})") from None
    if questions != asked.questions:
        raise InputError(f"{path}: its predictions are of other questions than --eval_data_path")
    if golds != [asked.gold_ids.grades_of(row) for row in range(len(questions))]:
        raise InputError(f"{path}: its questions have other golds than in --eval_data_path; evaluate it again")
    return values


def predictions_file(split: str) -> str:
    """Returns the name of the file with the questions of a split and what was found for them."""
    return f"{split}-predictions.jsonl"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
