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


def first_places(ids: np.ndarray) -> np.ndarray:
    """Returns where each passage comes first, ascending, from the ids (N,) of all documents in document order."""
    return np.sort(np.unique(ids, return_index=True)[1])


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


def refuse_clashes(ids: np.ndarray, text_hashes: np.ndarray, files: list[str], kind: str) -> None:
    """Raises InputError if passages in files of `documents` or `questions` clash; the message shows two texts."""
    found = clashing(ids, text_hashes)
    if len(found):
        raise InputError(describe_clash(files, kind, int(found[0])))


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
