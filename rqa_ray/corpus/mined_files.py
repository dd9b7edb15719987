"""Writes what was mined: training lines with hard negatives, the negatives by id, the suspects, a report.

Shapes: Q questions (distinct wordings), G golds of all questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rqa_ray.corpus.mining import HIGHEST_LEVEL, LEVEL_STEP, Candidates, Mined, ScoredGolds, Verdict
from rqa_ray.corpus.mining_inputs import Passages, TrainingPairs
from rqa_ray.data.columns import runs
from rqa_ray.data.schema import Document, QARecord, grades_entry, instruction_entry, question_key
from rqa_ray.errors import InputError
from rqa_ray.places import read_json, write_json

TRAIN_FILE, NEGATIVES_FILE, SUSPECTS_FILE, MINING_FILE = (
    "train.jsonl",
    "negatives.parquet",
    "suspects.jsonl",
    "mining.json",
)
SUSPECTS_PER_QUESTION, MOST_SUSPECTS = 3, 5_000  # suspects that are written; nobody reads more
RECORDS_AT_ONCE = 2_048  # the documents of their negatives are in memory together


@dataclass
class MiningReport:
    """The contents of mining.json: what was mined, from what, and how."""

    identity: dict[str, Any]  # hashes of model, corpus, questions and teacher, and the settings
    counts: dict[str, int]
    levels: dict[str, list[float]]  # `Mined.histogram`, and the edges of its columns
    leaks: dict[str, dict[str, int]]  # by split
    weight: float | None = None  # of the model in the hybrid that decided, if it did

    def save(self, folder: Path) -> None:
        write_json(folder / MINING_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> MiningReport | None:
        """Returns the report of an earlier run; None where there is none.

        Raises:
            InputError: another program, or another version of this one, wrote the file.
        """
        found = read_json(folder / MINING_FILE)
        try:
            return None if found is None else cls(**found)
        except TypeError:
            what = "not a report of this version of jobs/mine.py"
            raise InputError(f"{folder / MINING_FILE}: {what}; choose another folder") from None


def closest_suspects(mined: Mined) -> tuple[Candidates, np.ndarray]:
    """Returns those suspects of each question that are closest to its golds, and their levels."""
    suspects = mined.of(Verdict.SUSPECT)
    levels = mined.levels(suspects)
    rank = np.empty(len(levels), np.int64)  # rank of a suspect in its question
    rank[np.lexsort([-levels, suspects.questions])] = np.arange(len(levels)) - suspects.offsets[suspects.questions]
    kept = rank < SUSPECTS_PER_QUESTION
    return suspects.where(kept), levels[kept]


class MinedQuestions:
    """Collects what is mined for all questions: keeps negatives and the best suspects, counts the other candidates."""

    def __init__(self) -> None:
        self._negatives: list[Candidates] = []
        self._suspects: list[Candidates] = []
        self._levels: list[np.ndarray] = []
        self._gold_scores: list[np.ndarray] = []
        self.counts = {"candidates": 0, **{verdict.name.lower(): 0 for verdict in Verdict}}
        self.histogram: np.ndarray | int = 0

    def add(self, mined: Mined, golds: ScoredGolds) -> None:
        """Adds the next slice of questions."""
        suspects, levels = closest_suspects(mined)
        self._suspects.append(suspects)
        self._levels.append(levels)
        self._negatives.append(mined.of(Verdict.NEGATIVE))
        self._gold_scores.append(golds.scores)
        for name, number in {"candidates": len(mined.verdicts), **mined.counts()}.items():
            self.counts[name] += number
        self.histogram = self.histogram + mined.histogram()

    def negatives(self) -> Candidates:
        """Returns the negatives of all questions."""
        return Candidates.join(self._negatives)

    def suspects(self) -> tuple[Candidates, np.ndarray]:
        """Returns at most SUSPECTS_PER_QUESTION of each question, and their levels."""
        return Candidates.join(self._suspects), np.concatenate(self._levels)

    def gold_scores(self) -> np.ndarray:
        """Returns the (G,) scores of `Wordings.golds`."""
        return np.concatenate(self._gold_scores)

    def levels(self) -> dict[str, list[float]]:
        """Returns the histogram and the edges of its columns, for the report."""
        edges = np.arange(round(HIGHEST_LEVEL / LEVEL_STEP) + 1) * LEVEL_STEP
        return {"edges": np.round(edges, 2).tolist(), "candidates": np.asarray(self.histogram).tolist()}


def write_train(
    path: Path, records: Iterable[QARecord], pairs: TrainingPairs, found: MinedQuestions, passages: Passages
) -> int:
    """Writes a line for each question of each record, in LocalRQA's form.

    Returns how many hard negatives of the input the mined ones replace.
    """
    rows = {key: row for row, key in enumerate(pairs.wordings.keys.tolist())}
    golds, gold_scores, negatives, replaced = pairs.wordings.golds, found.gold_scores(), found.negatives(), 0
    asking = (record for record in records if record.questions)
    with path.open("w", encoding="utf-8") as file:
        while part := list(islice(asking, RECORDS_AT_ONCE)):
            asked = [(record, question) for record in part for question in record.questions]
            replaced += sum(len(record.hard_neg_docs) for record in part if not record.first_question)
            numbers = np.array([rows[question_key(question, record.instruction)] for record, question in asked])
            places, ends = runs(negatives.offsets[numbers], np.diff(negatives.offsets)[numbers])
            documents = passages.documents(negatives.positions[places])
            for number, (record, question) in enumerate(asked):
                own, row = places[ends[number] : ends[number + 1]], numbers[number]
                ids = np.array([gold.passage_id for gold in record.gold_docs])
                of_golds = golds.offsets[row] + np.searchsorted(golds[row], ids)
                line = {
                    "questions": [question],
                    **instruction_entry(record.instruction),
                    "gold_docs": [vars(gold) for gold in record.gold_docs],
                    **grades_entry(record.grades),
                    "hard_neg_docs": [vars(documents[place]) for place in negatives.positions[own].tolist()],
                    "hard_neg_scores": negatives.scores[own].tolist(),
                    "gold_scores": gold_scores[of_golds].tolist(),
                    "chat_history": [],
                }
                file.write(json.dumps(line) + "\n")
    return replaced


def write_negatives(path: Path, pairs: TrainingPairs, negatives: Candidates) -> None:
    """Writes a row for each question and negative; a rank is null where that ranking does not have the passage."""
    questions = pa.array(negatives.questions.astype(np.int32))
    # A question with two instructions has its text twice. In a dictionary, Parquet would write bytes that it has not
    # set for the second one, so the files of two equal runs could differ.
    texts = pa.array(pairs.questions, pa.string()).dictionary_encode()
    columns = {
        "question_key": pa.array(pairs.wordings.keys[negatives.questions]),
        "question": pa.DictionaryArray.from_arrays(texts.indices.take(questions), texts.dictionary),
        "passage_id": pa.array(pairs.ids[negatives.positions]),
        "score": pa.array(negatives.scores),
        "dense_rank": pa.array(negatives.dense_ranks, mask=negatives.dense_ranks == 0),
        "bm25_rank": pa.array(negatives.bm25_ranks, mask=negatives.bm25_ranks == 0),
    }
    pq.write_table(pa.table(columns), path)


@dataclass(frozen=True)
class Suspect:
    """A passage that may be an answer of a question, although no file says so."""

    key: int  # `schema.question_key`
    question: str
    instruction: str | None
    golds: list[Document]
    gold_score: float  # of the lowest gold
    rival: Document
    score: float
    dense_rank: int  # from 1; 0 if the dense model does not find the passage
    bm25_rank: int

    def line(self) -> dict[str, Any]:
        """Returns the object of a line of suspects.jsonl, in which a person sets `accept`."""
        return {
            "id": f"{self.key % 2**64:016x}-{self.rival.passage_id % 2**64:016x}",
            "question": self.question,
            **instruction_entry(self.instruction),
            "gold_docs": [vars(gold) for gold in self.golds],
            "gold_score": self.gold_score,
            "rival": vars(self.rival),
            "score": self.score,
            "dense_rank": self.dense_rank or None,
            "bm25_rank": self.bm25_rank or None,
            "accept": None,
        }


def suspects_of(pairs: TrainingPairs, found: MinedQuestions, passages: Passages) -> Iterator[Suspect]:
    """Yields the suspects that are written, the closest to its gold first."""
    (suspects, levels), gold_scores = found.suspects(), found.gold_scores()
    golds, questions = pairs.wordings.golds, suspects.questions
    order = np.argsort(-levels, kind="stable")[:MOST_SUSPECTS]
    of_golds, ends = runs(golds.offsets[questions[order]], np.diff(golds.offsets)[questions[order]])
    documents = passages.documents(np.concatenate([suspects.positions[order], pairs.gold_positions[of_golds]]))
    for number, place in enumerate(order.tolist()):
        own, question = of_golds[ends[number] : ends[number + 1]], questions[place]
        yield Suspect(
            int(pairs.wordings.keys[question]),
            pairs.questions[question],
            pairs.instructions[question],
            [documents[gold] for gold in pairs.gold_positions[own].tolist()],
            float(gold_scores[own].min()),
            documents[int(suspects.positions[place])],
            float(suspects.scores[place]),
            int(suspects.dense_ranks[place]),
            int(suspects.bm25_ranks[place]),
        )


def write_suspects(path: Path, suspects: Iterable[Suspect]) -> int:
    """Writes a line for each suspect; returns the number of lines."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for suspect in suspects:
            file.write(json.dumps(suspect.line()) + "\n")
            number += 1
    return number
