"""Decides which document counts when several have the same passage id: the first one, for every reader of a corpus.

Documents with one id are one passage. If their embedded texts differ, the documents clash: the id then says less than
the data means, and training, search and metrics would count wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from rqa_ray.data.labels import NO_LABELS, Labels
from rqa_ray.data.records import good_records, read_records
from rqa_ray.data.schema import Document, QARecord, text_hash
from rqa_ray.errors import InputError
from rqa_ray.places import shown

SHOWN_CHARS = 60
SORTED_AT_ONCE = 2**19  # about how many ids are sorted at once, which takes 20 MB
BUCKETS = 64  # parts of the ids, which are sorted one after the other


def is_first(ids: np.ndarray) -> np.ndarray:
    """Returns (N,) bool, true where a passage comes first, from the ids (N,) of all documents in document order.

    Beside the result, the memory is one byte for each id, and that of sorting a part of the ids: sorting all ids would
    take 24 bytes for each. The ids are hashes, so their highest byte cuts them into parts of one size.
    """
    first = np.ones(len(ids), bool)
    number = 1 if len(ids) <= SORTED_AT_ONCE else BUCKETS
    highest = np.ascontiguousarray(ids).astype("<i8", copy=False).view(np.uint8)[7::8]
    for bucket in range(number):
        places = np.flatnonzero(highest % number == bucket)
        order = np.argsort(ids[places], kind="stable")
        ordered = ids[places[order]]
        first[places[order[1:]]] = ordered[1:] != ordered[:-1]
    return first


def first_places(ids: np.ndarray) -> np.ndarray:
    """Returns where each passage comes first, ascending, from the ids (N,) of all documents in document order."""
    return np.flatnonzero(is_first(ids))


def places_of(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns (n,) where the wanted ids (n,) stand among distinct ids (N,), and -1 for those that are not there.

    Memory grows with n alone.
    """
    distinct, numbers = np.unique(wanted, return_inverse=True)
    places = np.full(len(distinct), -1)
    for start in range(0, len(ids) if len(distinct) else 0, SORTED_AT_ONCE):
        part = ids[start : start + SORTED_AT_ONCE]
        found = is_among(part, distinct)
        places[np.searchsorted(distinct, part[found])] = start + np.flatnonzero(found)
    return places[numbers]


def is_among(ids: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Returns (N,) bool, true where an id (N,) is one of some other ids, which are in ascending order."""
    if not len(ordered):
        return np.zeros(len(ids), bool)
    return ordered[np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)] == ids


def read_distinct(files: list[str], skip_bad: bool = False) -> Iterator[Document]:
    """Yields the distinct passages of document files, in document order.

    Raises:
        InputError: a bad record, or a passage that clashes; with `skip_bad` these are left out.
    """
    seen: dict[int, int] = {}  # by id, the hash of the embedded text
    for document in good_records(files, "documents", skip_bad):
        number, digest = document.passage_id, text_hash(document.fmt_content)
        if number not in seen:
            seen[number] = digest
            yield document
        elif seen[number] != digest and not skip_bad:
            raise InputError(describe_clash(files, "documents", number))


def clashing(ids: np.ndarray, text_hashes: np.ndarray) -> np.ndarray:
    """Returns the ids of passages with several embedded texts, from parallel arrays."""
    order = np.lexsort([text_hashes, ids])
    ids, text_hashes = ids[order], text_hashes[order]
    return np.unique(ids[1:][(ids[1:] == ids[:-1]) & (text_hashes[1:] != text_hashes[:-1])])


def describe_clash(files: list[str], kind: str, passage_id: int, labels: Labels = NO_LABELS) -> str:
    """Reads the files again; returns a line with two embedded texts of a passage, from where they begin to differ."""
    found: dict[str, str] = {}
    for path in files:
        for line, record in read_records(path, kind, labels=labels):
            documents = record.passages if isinstance(record, QARecord) else [record]
            for document in documents:
                if isinstance(document, Document) and document.passage_id == passage_id:
                    found.setdefault(document.fmt_content, f"{shown(path)}:{line}")
            if len(found) == 2:
                start = max(0, len(os.path.commonprefix(list(found))) - SHOWN_CHARS // 3)
                one, other = (text[start : start + SHOWN_CHARS] for text in found)
                before, place = found.values()
                return (
                    f"{place}: the same passage as in {before} (same page_content, and source or _id or title), but "
                    f"its embedded text is {other!r}, not {one!r}; give each passage its own source"
                )
    raise InputError(f"{files[0]}: this file, or one after it, changed while it was read")
