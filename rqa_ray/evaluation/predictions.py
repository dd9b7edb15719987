"""Shows questions and passages as people read them, and writes the file of retrieved passages."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, input_order
from rqa_ray.data.rows import distinct_documents, first_of_question
from rqa_ray.data.schema import Document, instruction_entry
from rqa_ray.evaluation.confidence import Clusters


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
        self.gold_ids = [list(golds) for golds in self._golds]

    @cached_property
    def clusters(self) -> Clusters:
        """Which questions tend to be right or wrong together."""
        documents = [(Document(**json.loads(text)) for text in golds.values()) for golds in self._golds]
        return Clusters.of(self.gold_ids, [[document.source_id for document in golds] for golds in documents])

    def gold_docs(self, question: int) -> list[dict[str, Any]]:
        return [full_document(json.loads(text)) for text in self._golds[question].values()]


def write_predictions(
    path: Path,
    asked: AskedQuestions,
    documents: Callable[[int], dict[str, Any]],
    scores: np.ndarray,
    positions: np.ndarray,
) -> None:
    """Writes one line for each question: its gold documents, and the retrieved ones with scores, best first.

    scores, positions: (Q, K), from a search. `documents` returns the document at a position.
    """
    with path.open("w", encoding="utf-8") as file:
        for row, question in enumerate(asked.questions):
            retrieved = [
                {**documents(int(position)), "score": float(score)}
                for position, score in zip(positions[row], scores[row], strict=True)
            ]
            about = {"question": question, **instruction_entry(asked.instructions[row])}
            record = {**about, "gold_docs": asked.gold_docs(row), "retrieved_docs": retrieved}
            file.write(json.dumps(record) + "\n")


def full_document(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a document with its `fmt_content`, built where the record has none."""
    return vars(Document(**record))
