"""Orders training rows that are all in memory: a shuffle of all rows in each epoch.

N is the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from rqa_ray.data.rows import TrainingRows


class ShuffledRows:
    """Training rows that are all in memory, in the order of the epochs."""

    def __init__(self, rows: TrainingRows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)  # a batch may contain rows of two epochs

    def __len__(self) -> int:
        return len(self.rows)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def take(self, first: int, count: int) -> tuple[TrainingRows, np.ndarray]:
        """Returns rows, and which of them (count,) are at consecutive places of the order."""
        epochs, within = np.divmod(first + np.arange(count), len(self.rows))
        parts = [self._permutation(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.rows, np.concatenate(parts)

    def parts(self) -> Iterator[TrainingRows]:
        """Yields all rows, in one part."""
        yield self.rows
