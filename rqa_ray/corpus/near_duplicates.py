"""Finds texts that are equal or nearly equal, by MinHash signatures of their shingles (runs of three words).

MinHash is from Broder 1997, "On the resemblance and containment of documents". Only 16 bits of each minimum are kept
(Li and König 2010, "b-bit minwise hashing"). So the texts themselves need not be in memory.

Shapes: P texts, N pairs of texts.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rqa_ray.data.schema import text_hash

SHINGLE_WORDS = 3
HASHES = 128  # hashes of a signature
# A passage that has this share of a gold's shingles counts as nearly that gold; benchmarks/LOG.md has what other
# limits find on Faire.
LIMIT = 0.7

WORD = re.compile(r"\w+")
SHINGLES_AT_ONCE = 4_096
PAIRS_AT_ONCE = 1 << 14  # pairs of signatures that are compared at once: 4 MB for each side
_FACTORS = np.random.default_rng(0).integers(1, 2**64, HASHES + SHINGLE_WORDS, np.uint64) | np.uint64(1)
OF_HASHES, OF_WORDS = _FACTORS[:HASHES], _FACTORS[HASHES:]


@dataclass
class Signatures:
    """The signatures of P texts, which tell equal texts and nearly equal texts."""

    exact: np.ndarray  # (P,) `text_hash`
    counts: np.ndarray  # (P,) number of distinct shingles; 0 for a text without words
    minima: np.ndarray  # (P, HASHES) uint16

    @classmethod
    def of(cls, texts: Iterable[str]) -> Signatures:
        """Computes the signatures of some texts."""
        rows = [(text_hash(text), *_minima(text)) for text in texts]
        minima = np.array([row[2] for row in rows], np.uint16).reshape(-1, HASHES)
        return cls(np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int32), minima)

    @classmethod
    def join(cls, parts: Sequence[Signatures]) -> Signatures:
        """Joins the signatures of several sets of texts, one after the other."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))

    def contained(self, texts: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Estimates (N,) which share of a text's shingles another text has too, for pairs of texts (N,) and (N,).

        The estimate is 1 if the texts differ only in case, punctuation and white space, and 0 for a text without
        words.
        """
        parts = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(texts), PAIRS_AT_ONCE)]
        equal = [(self.minima[texts[part]] == self.minima[others[part]]).sum(1) for part in parts]
        jaccard = np.concatenate([np.zeros(0), *equal]) / HASHES
        # With s shingles in both, jaccard = s / (counts of one + counts of the other - s), solved for s.
        both = jaccard / (1 + jaccard) * (self.counts[texts] + self.counts[others])
        return np.where(self.counts[others] > 0, both / np.maximum(self.counts[texts], 1), 0.0)


def _minima(text: str) -> tuple[int, np.ndarray]:
    """Returns the number of distinct shingles, and the smallest of their hashes for each of HASHES hash functions."""
    words = WORD.findall(text.casefold())
    if not words:
        return 0, np.zeros(HASHES, np.uint16)
    numbers = np.zeros(max(len(words), SHINGLE_WORDS), np.uint64)
    numbers[: len(words)] = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    windows = np.lib.stride_tricks.sliding_window_view(numbers, SHINGLE_WORDS)
    shingles = np.unique(_mixed((windows * OF_WORDS).sum(1, dtype=np.uint64)))
    minima = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), SHINGLES_AT_ONCE):
        hashes = shingles[start : start + SHINGLES_AT_ONCE, None] * OF_HASHES
        minima = np.minimum(minima, hashes.min(0))
    # The upper bits of a minimum are 0 in every text, and its lower bits depend on few bits of the shingle.
    return len(shingles), (minima >> np.uint64(24)).astype(np.uint16)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Mixes the bits of uint64 numbers with SplitMix64's finalizer, so that odd multiples of them are good hashes."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
