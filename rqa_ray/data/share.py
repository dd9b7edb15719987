"""Chooses a share of the training pairs, by their source documents.

A hash of the source and the seed decides alone, so all pairs of a source document are in the share or out of it
together, a smaller share is a part of a larger one, and every reader of the files chooses the same pairs. The share of
the pairs that is met is near the share asked for, and not equal to it. Pairs that are left out are as if they were not
in the files.

N is the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, input_order
from rqa_ray.data.schema import QARecord
from rqa_ray.data.splits import seeded_hash
from rqa_ray.errors import InputError


@dataclass(frozen=True)
class Share:
    """A share of the source documents."""

    share: float = 1.0  # above 0, at most 1
    seed: int = 0

    @property
    def is_all(self) -> bool:
        return self.share >= 1

    def takes(self, source_keys: np.ndarray) -> np.ndarray:
        """Returns (N,) whether the sources with the keys (N,), from `QARecord.source_key`, are in the share."""
        if self.is_all:
            return np.ones(len(source_keys), bool)
        distinct, of_rows = np.unique(source_keys, return_inverse=True)
        drawn = [int.from_bytes(seeded_hash(str(key), self.seed)[:8], "big") for key in distinct.tolist()]
        return np.array([number < self.share * 2**64 for number in drawn], bool)[of_rows]

    def has(self, record: QARecord) -> bool:
        """Returns whether the pairs of a record are in the share."""
        return bool(self.takes(np.array([record.source_key]))[0])

    def numbers(self, tables: Sequence[pa.Table]) -> np.ndarray:
        """Returns the numbers of the pairs in the share, in the order of the input.

        `tables` are blocks of `token_tables.SCHEMAS["train"]`.
        """
        return np.flatnonzero(self.takes(column(tables, "source_key")[input_order(tables)]))


@dataclass(frozen=True)
class PairsInShare:
    """How many training pairs a share has."""

    share: Share
    num_pairs: int
    num_all: int  # pairs of the files
    source_keys: np.ndarray | None = None  # (N,) of all pairs; None if the files are streamed

    def __post_init__(self) -> None:
        """Refuses a share without pairs.

        Raises:
            InputError: the share has no pair.
        """
        if self.num_all and not self.num_pairs:
            raise InputError(f"--train_share {self.share.share:g}: has {self.describe()}; raise the share")

    @classmethod
    def of(cls, share: Share, source_keys: np.ndarray) -> PairsInShare:
        """Counts the pairs of a share by the source keys (N,) of all pairs.

        Raises:
            InputError: the share has no pair.
        """
        return cls(share, int(share.takes(source_keys).sum()), len(source_keys), source_keys)

    def describe(self) -> str:
        """Returns words about the pairs and their sources."""
        text = f"{self.num_pairs:,} of {self.num_all:,} pairs"
        if self.source_keys is not None:
            sources = np.unique(self.source_keys)
            text += f", from {self.share.takes(sources).sum():,} of {len(sources):,} sources"
        return text


ALL = Share()
