"""Holds what mining knows beside embeddings: training pairs, documents, and the golds of eval and test questions.

Shapes: N pairs of a question and a gold, Q questions (distinct wordings), P passages of the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.corpus.mining import Candidates, Wordings, refused_at
from rqa_ray.corpus.shards import EmbeddingFolder
from rqa_ray.data.columns import column, input_order
from rqa_ray.data.distinct import first_places, places_of
from rqa_ray.data.golds import Golds
from rqa_ray.data.labels import Labels
from rqa_ray.data.records import good_records
from rqa_ray.data.schema import Document


class TrainingPairs:
    """The pairs of the training files: their questions, their golds, and the golds that the corpus lacks."""

    def __init__(
        self, tables: Sequence[pa.Table], corpus_ids: np.ndarray, refused: AbstractSet[tuple[int, int]] = frozenset()
    ) -> None:
        """Takes blocks of `token_tables.SCHEMAS["questions"]`, the passage ids (P,) in document order, and labels.

        refused: `Labels.refused`.
        """
        order = input_order(tables)
        ids = column(tables, "passage_id")[order]
        self.wordings = Wordings.of(column(tables, "question_key")[order], ids)
        self.num_pairs = len(ids)
        self.num_empty = int(column(tables, "num_empty_questions").sum())
        self.questions: list[str] = _texts(tables, "question", order[self.wordings.first])
        self.instructions: list[str | None] = _texts(tables, "instruction", order[self.wordings.first])
        first = first_places(ids)
        lacking = first[places_of(ids[first], corpus_ids) < 0]
        self.beside = [Document(**json.loads(text)) for text in _texts(tables, "gold_doc", order[lacking])]
        self.ids = np.concatenate([corpus_ids, ids[lacking]]) if len(lacking) else corpus_ids  # by position
        self.gold_positions = places_of(self.wordings.golds.ids, self.ids)  # as golds.ids
        asked = set(self.wordings.keys.tolist())
        self.refused = refused_at((pair for pair in refused if pair[0] in asked), self.ids)
        parts = [ids.tobytes(), column(tables, "question_key")[order].tobytes(), *map(_utf8, self.questions)]
        parts += [_utf8(text) for text in self.instructions if text is not None]
        parts += [_utf8(document.fmt_content) for document in self.beside]
        self.digest = hashlib.blake2b(b"|".join(parts), digest_size=16).hexdigest()


def _texts(tables: Sequence[pa.Table], name: str, rows: np.ndarray) -> list[Any]:
    """Returns the texts of a column at some rows of all tables; None for a null."""
    texts = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks], pa.string())
    return [texts[int(row)].as_py() for row in rows]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@dataclass
class Passages:
    """Reads documents by position: those of the corpus from saved shards, then the golds beside it."""

    location: str  # where the shards are
    number: int  # passages of the corpus
    beside: list[Document]

    def documents(self, positions: np.ndarray) -> dict[int, Document]:
        """Returns the documents at some positions."""
        wanted = np.unique(positions)
        found = EmbeddingFolder(self.location).documents(wanted[wanted < self.number])
        documents = {place: Document(**record) for place, record in found.items()}
        return documents | {int(place): self.beside[place - self.number] for place in wanted[wanted >= self.number]}


class EvalSplit:
    """The questions of the eval files or of the test files, and their golds."""

    def __init__(self, files: list[str], labels: Labels) -> None:
        records = [record for record in good_records(files, "questions", labels=labels) if record.questions]
        self.labelled = set().union(*map(labels.keys_in, records))  # keys of the questions with an accepted passage
        asked = [(record, question) for record in records for question in record.questions]
        self.questions = [question for _, question in asked]
        self.instructions = [record.instruction for record, _ in asked]
        counts = [len(record.gold_docs) for record, _ in asked]
        numbers = np.repeat(np.arange(len(asked)), counts)
        ids = [gold.passage_id for record, _ in asked for gold in record.gold_docs]
        grades = np.array([grade for record, _ in asked for grade in record.grades])
        first = np.cumsum([0, *counts])[:-1]
        self.golds = Golds.of(numbers, np.array(ids, np.int64), grades).select(first)
        known = [self.questions, self.instructions, [golds.tolist() for golds in self.golds]]
        known += [] if self.golds.grades is None else [self.golds.grades.tolist()]
        self.digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()

    def leaks(self, negatives: Candidates, ids: np.ndarray) -> dict[str, int]:
        """Counts the questions with a gold among mined negatives, and these golds."""
        mined = ids[np.unique(negatives.positions)]
        return {
            "questions": len(self.golds),
            "with_a_mined_gold": self.golds.num_with(mined),
            "mined_golds": len(np.intersect1d(self.golds.ids, mined)),
        }
