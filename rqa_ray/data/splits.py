"""Splits items that come in groups into train, eval and test; writes files together."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rqa_ray.errors import InputError

HELD_OUT_SHARE = 0.12  # share of all items for eval, and for test, each rounded up to whole groups; the rest is train
# share of all items; larger groups go to train, because one of them would fill most of eval or test
LARGE_GROUP_SHARE = 0.02

T = TypeVar("T")


def split_groups(groups: Mapping[str, Sequence[T]], seed: int) -> dict[str, list[T]]:
    """Splits whole groups in the order of their hashes: first test gets its share, then eval, then train the rest."""
    total = sum(map(len, groups.values()))
    splits: dict[str, list[T]] = {"test": [], "eval": [], "train": []}
    for name in sorted(groups, key=lambda name: seeded_hash(name, seed)):
        small = len(groups[name]) <= LARGE_GROUP_SHARE * total
        open_splits = [split for split in ("test", "eval") if small and len(splits[split]) < HELD_OUT_SHARE * total]
        splits[[*open_splits, "train"][0]] += groups[name]
    return splits


def linked(items: np.ndarray, ids: np.ndarray, number: int) -> np.ndarray:
    """Returns (number,) the group of each item, from 0: items with an id in common are in one group.

    Item `items[i]` has the id `ids[i]`; both are (E,).
    """
    ids = np.unique(ids, return_inverse=True)[1]
    labels = np.arange(number)
    while True:  # the smallest item spreads through its group, from items to ids and back
        of_id = np.full(len(ids), number)
        np.minimum.at(of_id, ids, labels[items])
        spread = labels.copy()
        np.minimum.at(spread, items, of_id[ids])
        if np.array_equal(spread, labels):
            return np.unique(labels, return_inverse=True)[1]
        labels = spread


def seeded_hash(text: str, seed: int | str) -> bytes:
    """Returns the sort key of a text in a shuffled order that is always the same."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def folded(text: str) -> str:
    """Returns a text without case, white space and full stop: texts with the same result count as the same."""
    return " ".join(text.casefold().split()).rstrip(".!?")


def write_together(folder: Path, files: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Writes JSON lines into a temporary folder, and moves the files to their places when all are complete.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            for name, records in files.items():
                text = "".join(json.dumps(record) + "\n" for record in records)
                Path(partial, name).write_text(text, encoding="utf-8", newline="\n")
            for name in files:
                Path(partial, name).replace(folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror or error}") from None
