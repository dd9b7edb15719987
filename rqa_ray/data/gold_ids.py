"""Finds the passages of a corpus by their ids, which records name in `gold_ids` and `hard_neg_ids`.

Ids are compared by their text, so the number 7 and the text "7" are one id. P is the number of passages with an id.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rqa_ray.data.schema import Document, QARecord, text_hash
from rqa_ray.data.values import RecordError
from rqa_ray.errors import InputError

PASSAGES_AT_ONCE = 10_000


class NamedPassage(NamedTuple):
    """A passage of a corpus, its id, and the line where it stands, such as `corpus.jsonl:3`."""

    id: str
    passage: Document
    file: str
    line: int


@dataclass(frozen=True)
class PassagesById:
    """The passages of a corpus that have an id, in arrays, which the processes of a node share without a copy."""

    source: str  # the files of the corpus, as messages show them
    ids: np.ndarray  # (P,) sorted hashes of the ids
    places: np.ndarray  # (P,) the place of each passage in `documents`
    documents: pa.ChunkedArray  # (P,) as JSON

    @classmethod
    def of(cls, source: str, passages: Iterable[NamedPassage]) -> PassagesById:
        """Collects passages with an id.

        Raises:
            InputError: two different passages have the same id.
        """
        ids, contents, lines = array("q"), array("q"), array("q")
        files: list[str] = []
        blocks = []
        passages = iter(passages)
        while some := list(islice(passages, PASSAGES_AT_ONCE)):
            ids.extend(text_hash(one.id) for one in some)
            contents.extend(text_hash(f"{one.passage.passage_id} {one.passage.fmt_content}") for one in some)
            lines.extend(one.line for one in some)
            files += [one.file for one in some]
            blocks.append(pa.array([json.dumps(one.passage.to_dict()) for one in some], pa.string()))
        places = np.argsort(np.array(ids, np.int64), kind="stable")
        ordered, same = np.array(ids, np.int64)[places], np.array(contents, np.int64)[places]
        clashes = np.flatnonzero((ordered[1:] == ordered[:-1]) & (same[1:] != same[:-1]))
        if len(clashes):
            one, other = (f"{files[place]}:{lines[place]}" for place in places[clashes[0] : clashes[0] + 2])
            raise InputError(f"{other}: another passage than {one}, with the same id; give each its own id")
        return cls(source, ordered, places, pa.chunked_array(blocks, pa.string()))

    def describe(self) -> str:
        """Returns a line for the user."""
        return f"gold_ids: looked up among the ids of {len(self.ids):,} passages in {self.source}"

    def resolve(self, record: QARecord) -> QARecord:
        """Returns a record with the passages that its ids name.

        Raises:
            RecordError: no passage has one of the ids, or no corpus is known.
        """
        if record.gold_ids is None:
            return record
        golds = [self._passage("gold_ids", one) for one in record.gold_ids]
        negatives = [self._passage("hard_neg_ids", one) for one in record.hard_neg_ids]
        return replace(record, gold_docs=golds, hard_neg_docs=record.hard_neg_docs + negatives)

    def _passage(self, key: str, name: str) -> Document:
        if not self.source:
            raise RecordError(
                f"`{key}`, but the first record of the file has none; give all records of a file one form"
            )
        wanted = text_hash(name)
        row = int(np.searchsorted(self.ids, wanted))
        if row == len(self.ids) or self.ids[row] != wanted:
            raise RecordError(f"`{key}` has {name!r:.80}, which is the id of no passage in {self.source}")
        return Document(**json.loads(self.documents[int(self.places[row])].as_py()))


NO_PASSAGES = PassagesById.of("", [])
