"""Which texts are equal or nearly so, told without the texts: MinHash signatures of their shingles, three words each.

MinHash: Broder 1997, "On the resemblance and containment of documents". Of each minimum only 16 bits are kept (Li and
König 2010, "b-bit minwise hashing").

P texts, N pairs of texts.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rqa_ray.data.schema import text_hash

SHINGLE_WORDS = 3
HASHES = 128  # of a signature
# A passage that has this share of a gold's shingles is nearly that gold. Measured on Faire, whose articles are cut
# into overlapping chunks of two sizes: 16,675 pairs of a gold and another passage that share a fifth of the shorter
# one's shingles. 7% of these passages hold 9 of 10 word pairs that answer and gold share. A limit of 0.7 finds 71% of
# them, and 84% of what it finds are such; 0.8 finds 60% (93%), 0.6 finds 77% (77%). The Jaccard similarity is blind
# to a short chunk in a long one: at a limit of 0.7 it finds 17% (91%), at 0.5 32% (74%).
LIMIT = 0.7

WORD = re.compile(r"\w+")
SHINGLES_AT_ONCE = 4_096
PAIRS_AT_ONCE = 1 << 14  # of signatures that are compared: 4 MB of each side
_FACTORS = np.random.default_rng(0).integers(1, 2**64, HASHES + SHINGLE_WORDS, np.uint64) | np.uint64(1)
OF_HASHES, OF_WORDS = _FACTORS[:HASHES], _FACTORS[HASHES:]


@dataclass
class Signatures:
    """What tells of P texts which are equal and which nearly so."""

    exact: np.ndarray  # (P,) `text_hash`
    counts: np.ndarray  # (P,) distinct shingles; 0 of a text without words
    minima: np.ndarray  # (P, HASHES) uint16

    @classmethod
    def of(cls, texts: Iterable[str]) -> Signatures:
        """The signatures of some texts."""
        rows = [(text_hash(text), *_minima(text)) for text in texts]
        minima = np.array([row[2] for row in rows], np.uint16).reshape(-1, HASHES)
        return cls(np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int32), minima)

    @classmethod
    def join(cls, parts: Sequence[Signatures]) -> Signatures:
        """The signatures of several sets of texts, one after the other."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))

    def contained(self, texts: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(N,) estimates of the share of a text's shingles that another text has too, for the texts at (N,) and (N,).

        1 where the words are the same but for case, punctuation and white space; 0 of a text without words.
        """
        parts = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(texts), PAIRS_AT_ONCE)]
        equal = [(self.minima[texts[part]] == self.minima[others[part]]).sum(1) for part in parts]
        jaccard = np.concatenate([np.zeros(0), *equal]) / HASHES
        # With s shingles in both, jaccard = s / (counts of one + counts of the other - s), solved for s.
        both = jaccard / (1 + jaccard) * (self.counts[texts] + self.counts[others])
        return np.where(self.counts[others] > 0, both / np.maximum(self.counts[texts], 1), 0.0)


def _minima(text: str) -> tuple[int, np.ndarray]:
    """The number of distinct shingles, and the smallest of their hashes by each of HASHES hash functions."""
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
    """uint64 numbers, their bits mixed by SplitMix64's finalizer, so that odd multiples of them are good hashes."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
