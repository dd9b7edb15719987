"""Counts what is in training files, record by record: in all files, or in a sample of their first records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from rqa_ray.data.beir import is_judgments, num_judgments
from rqa_ray.data.files import LINES, has_suffix, read_lines, text_bytes
from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import QARecord, instruction_entry
from rqa_ray.data.share import ALL, Share

SAMPLE_FILES, SAMPLE_RECORDS, SAMPLE_ROWS = 8, 500, 2_000
LARGEST_ID = 2**63 - 1
NUMBERS = (
    "num_rows",
    "num_questions",
    "num_empty",
    "num_chats",
    "num_negatives",
    "num_left_out",
    "num_scored",
    "num_no_cosines",
)


def num_no_cosines(scores: np.ndarray) -> int:
    """Returns how many scores are below -1 or above 1 by more than rounding; NaN is no score."""
    return int((np.abs(scores) > 1.001).sum())


@dataclass
class Counts:
    """Numbers of training files, or of a part of one file."""

    num_rows: int = 0  # pairs of a question and a gold passage
    num_questions: int = 0
    num_empty: int = 0  # empty questions, which are left out
    num_chats: int = 0  # rows with a chat history, which is not used
    num_negatives: int = 0  # hard negatives of all records
    smallest_gold: int = LARGEST_ID  # the smallest and the largest passage id of a gold
    largest_gold: int = -LARGEST_ID
    num_left_out: int = 0  # rows that `--train_share` leaves out, which are counted nowhere else
    num_scored: int = 0  # hard negatives that have a teacher's score
    num_no_cosines: int = 0  # of these scores, those below -1 or above 1

    def add(self, record: QARecord, share: Share = ALL) -> None:
        """Counts one more record; of a record that is not in the share, only its rows."""
        rows = len(record.questions) * len(record.gold_docs)
        if not share.has(record):
            self.num_left_out += rows
            return
        self.num_rows += rows
        self.num_questions += len(record.questions)
        self.num_empty += record.num_empty_questions
        self.num_chats += rows * record.has_chat_history
        self.num_negatives += len(record.hard_neg_docs) * (rows > 0 and not record.first_question)
        if rows > 0 and not record.first_question:
            scores = np.array(record.hard_neg_scores or [])
            self.num_scored += len(scores)
            self.num_no_cosines += num_no_cosines(scores)
        golds = [gold.passage_id for gold in record.gold_docs] if rows else []
        self.smallest_gold = min(self.smallest_gold, *golds, LARGEST_ID)
        self.largest_gold = max(self.largest_gold, *golds, -LARGEST_ID)

    @classmethod
    def of(cls, parts: Mapping[str, np.ndarray]) -> Counts:
        """Adds up the counts of P parts, which are (P,) arrays by name."""
        sums = {name: int(parts[name].sum()) for name in NUMBERS}
        ends = {"smallest_gold": int(parts["smallest_gold"].min()), "largest_gold": int(parts["largest_gold"].max())}
        return cls(**sums, **ends)

    @property
    def has_one_gold(self) -> bool:
        """Whether all questions have the same single gold passage."""
        return self.num_rows > 0 and self.smallest_gold == self.largest_gold


@dataclass
class FileSample:
    """The first good records of a training file, and how much of the file they take."""

    records: list[tuple[int, QARecord]] = field(default_factory=list)  # line and record
    counts: Counts = field(default_factory=Counts)
    num_bytes: int = 0  # bytes of their text as JSON, also of passages that the file names by ids alone
    size: float = 0.0  # what they take of `size_of` the file

    @classmethod
    def of(cls, path: str, share: float, labels: Labels) -> FileSample:
        """Reads a share of the records of a whole sample."""
        sample, as_json, ended = cls(), 0, True
        for line, record in read_records(path, "questions", labels=labels):
            if isinstance(record, QARecord):
                sample.records.append((line, record))
                sample.counts.add(record)
                asked = [*instruction_entry(record.instruction).values(), *record.questions]
                texts = [asked, *(document.to_dict() for document in record.passages)]
                num_bytes = sum(len(json.dumps(text)) for text in texts)
                sample.num_bytes += num_bytes
                ids = record.gold_ids and [*record.gold_ids, *record.hard_neg_ids]
                as_json += len(json.dumps({"questions": asked, "gold_ids": ids})) if ids else num_bytes
            if len(sample.records) >= share * SAMPLE_RECORDS or sample.counts.num_rows >= share * SAMPLE_ROWS:
                ended = False
                break
        if ended:
            sample.size = size_of(path)
        elif is_judgments(path):
            sample.size = sample.counts.num_rows + sample.counts.num_negatives
        elif has_suffix(path, *LINES):
            numbered = takewhile(lambda numbered: numbered[0] <= line, read_lines(path))
            sample.size = sum(len(text) for _, text in numbered)
        else:
            sample.size = as_json
        return sample


@dataclass
class Sample:
    """The first good records of some training files, which are spread over all files."""

    of_files: dict[str, FileSample] = field(default_factory=dict)

    @classmethod
    def of(cls, files: list[str], labels: Labels = NO_LABELS) -> Sample:
        """Reads the sample."""
        number = min(len(files), SAMPLE_FILES)
        chosen = (files[int(place)] for place in np.linspace(0, len(files) - 1, number))
        return cls({path: FileSample.of(path, 1 / number, labels) for path in chosen})

    @property
    def records(self) -> list[tuple[int, QARecord]]:
        """The records of all files, each with its line."""
        return [numbered for part in self.of_files.values() for numbered in part.records]

    @property
    def num_bytes(self) -> int:
        """The bytes of the records' text as JSON."""
        return sum(part.num_bytes for part in self.of_files.values())

    def sum_over(self, files: Iterable[str], number_of: Callable[[FileSample], float]) -> float:
        """Estimates the sum of a number over whole files: of each file from its own sample, else from all samples."""
        total = 0.0
        for path in files:
            alike = [part for other, part in self.of_files.items() if is_judgments(other) == is_judgments(path)]
            known = [self.of_files[path]] if path in self.of_files else alike
            rates = [number_of(part) / part.size for part in known if part.records and part.size]
            total += size_of(path) * sum(rates) / max(len(rates), 1)
        return total


def size_of(path: str) -> int:
    """Estimates the bytes of a file's text; of BEIR's judgments, whose texts are elsewhere, counts the judgments."""
    return num_judgments(path) if is_judgments(path) else text_bytes(path)


def record_bytes(files: list[str], sample: Sample) -> float:
    """Estimates how many bytes the records of files have, also those that a file names by their ids alone."""
    return sample.sum_over(files, lambda part: part.num_bytes)


def estimate(files: list[str], labels: Labels = NO_LABELS) -> Counts:
    """Estimates from a sample how many rows there are, and whether there are hard negatives."""
    sample = Sample.of(files, labels)
    num_rows = round(sample.sum_over(files, lambda part: part.counts.num_rows))
    return Counts(num_rows, num_negatives=sum(part.counts.num_negatives for part in sample.of_files.values()))
