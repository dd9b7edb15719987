"""Holds out a share of the training questions, which become the eval questions (`--eval_share`).

Questions stay together if golds of theirs are of one source document, or if they have the same wording. So no source
document, gold or wording of an eval question is that of a training question; hard negatives may be. Such groups of
questions are drawn one after the other, in the order of a hash of their source and the seed, until they have about the
share of the questions. All readers of the files agree about the result, because it is a set of source documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, inner, list_lengths
from rqa_ray.data.schema import QARecord, question_key
from rqa_ray.data.splits import linked, seeded_hash
from rqa_ray.errors import InputError

LINKS = pa.schema(
    [
        ("part", pa.int64()),  # number of the part of a file that was read
        ("file", pa.int32()),
        ("source_key", pa.int64()),  # `schema.QARecord.source_key`
        ("num_questions", pa.int64()),
        ("ids", pa.list_(pa.int64())),  # records that have one of these in common stay together
        ("skipped", pa.string()),  # a Skipped as JSON, in a row of its own
    ]
)


def links_of(record: QARecord) -> dict[str, Any]:
    """Returns what the split has to know about a record: a row of `LINKS` without its place."""
    sources = [gold.source_id for gold in record.gold_docs]
    wordings = [question_key(question) for question in record.questions]
    ids = list(dict.fromkeys(sources + wordings))
    return {"source_key": record.source_key, "num_questions": len(record.questions), "ids": ids}


@dataclass(frozen=True)
class Side:
    """The records of a file that count: those of eval, those of train, or all if nothing is held out."""

    sources: frozenset[int] = frozenset()  # source keys of the records of eval
    is_eval: bool = False

    @property
    def is_all(self) -> bool:
        return not self.sources

    def has(self, record: QARecord) -> bool:
        """Returns whether a record is on this side."""
        return self.is_all or (record.source_key in self.sources) == self.is_eval


ALL_RECORDS = Side()


@dataclass(frozen=True)
class HeldOut:
    """The source documents whose questions are held out for eval, and what a person should know about them."""

    sources: frozenset[int] = frozenset()
    share: float = 0.0
    questions: tuple[int, int] = (0, 0)  # held out, and all
    num_sources: int = 0  # of all questions

    @classmethod
    def of(cls, tables: Sequence[pa.Table], share: float, seed: int) -> HeldOut:
        """Chooses the sources from the records of the training files (blocks of `LINKS`, in any order).

        Raises:
            InputError: all questions have to stay together, or the share is smaller than every group of questions.
        """
        keys, sizes = column(tables, "source_key"), column(tables, "num_questions")
        counts = list_lengths(tables, "ids")
        group_of = linked(np.repeat(np.arange(len(keys)), counts), inner(tables, "ids"), len(keys))
        group_sizes = np.bincount(group_of, sizes).astype(np.int64)
        total, number = int(sizes.sum()), len(group_sizes)
        given = f"--eval_share {share:g}"
        if number < 2:
            raise InputError(
                f"{given}: all {total:,} training questions have one source, or are linked by shared golds and "
                "wordings, so none can be held out; give an --eval_file"
            )
        first = np.full(number, np.iinfo(np.int64).max)  # the source that stands for a group, in whatever order
        np.minimum.at(first, group_of, keys)
        hashes = [seeded_hash(str(key), f"{seed}:eval") for key in first.tolist()]
        chosen, held = np.zeros(number, bool), 0
        for group in sorted(range(number), key=hashes.__getitem__):
            size = int(group_sizes[group])
            if held + size / 2 <= share * total and held + size < total:  # nearer to the share with it than without
                chosen[group], held = True, held + size
        if not held:
            least = int(group_sizes.min())
            raise InputError(
                f"{given}: is less than half of the smallest group of questions that stay together ({least:,} of "
                f"{total:,} questions, by source, gold and wording); raise the share, or give an --eval_file"
            )
        sources = np.unique(keys[chosen[group_of]]).tolist()
        return cls(frozenset(sources), share, (held, total), len(np.unique(keys)))

    @property
    def digest(self) -> str:
        """A short text that is another one if other sources are held out; empty if none are."""
        keys = np.array(sorted(self.sources), np.int64)
        return hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest() if len(keys) else ""

    @property
    def kept(self) -> float:
        """The share of the questions that train keeps."""
        held, total = self.questions
        return 1 - held / max(total, 1)

    def side(self, name: str) -> Side:
        """Returns which records of the files of an input count, by the name of the input."""
        return Side(self.sources, name == "eval") if name in ("train", "eval") else ALL_RECORDS

    def describe(self) -> str:
        """Returns a line for the user."""
        held, total = self.questions
        left = self.num_sources - len(self.sources)
        return (
            f"eval: {held:,} of the {total:,} questions of train_file, from {len(self.sources):,} of "
            f"{self.num_sources:,} sources (--eval_share {self.share:g}); train keeps {total - held:,} questions, "
            f"from {left:,} sources"
        )


NOTHING = HeldOut()
