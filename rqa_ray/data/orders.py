"""Orders training rows that are all in memory: a shuffle of all rows, or batches of one source each.

N is the number of rows, S the number of sources, G the number of rows in a batch.
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


class RowsBySource(ShuffledRows):
    """Training rows in an order in which each batch has rows of one source (`--homogeneous_batches`).

    The rows of a source are shuffled anew in each pass over the source; rows left over at the end of a pass begin the
    next batch of the source. In epoch e, a source has as many batches as its first e + 1 passes fill, less those of
    earlier epochs. The batches of all sources are shuffled, so a source is drawn with a probability proportional to
    the batches that it has left. sentence-transformers' `MultiDatasetBatchSamplers.PROPORTIONAL` does the same, but
    drops the rows that are left over.
    """

    def __init__(self, rows: TrainingRows, seed: int, sources: np.ndarray, batch_size: int) -> None:
        """Takes the source (N,) of each row.

        Raises:
            ValueError: a source has fewer rows than a batch, which would have a row twice.
        """
        super().__init__(rows, seed)
        self._batch_size = batch_size
        self._rows_of = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        self._sizes = np.array([len(part) for part in self._rows_of])
        if self._sizes.min() < batch_size:
            raise ValueError(f"a source has {self._sizes.min()} rows, fewer than the {batch_size} of a batch")
        self._pass = lru_cache(maxsize=2 * len(self._sizes))(self._shuffle)
        self._batches = lru_cache(maxsize=2)(self._draw)

    def _shuffle(self, source: int, number: int) -> np.ndarray:
        """Returns the rows of a source in the order of a pass."""
        return np.random.default_rng([self.seed, number, 5, source]).permutation(self._rows_of[source])

    def _filled(self, epochs: int) -> np.ndarray:
        """Returns (S,) how many batches of each source its first passes fill."""
        return epochs * self._sizes // self._batch_size

    def _draw(self, epoch: int) -> np.ndarray:
        """Returns the sources of the batches of an epoch."""
        counts = self._filled(epoch + 1) - self._filled(epoch)
        return np.random.default_rng([self.seed, epoch, 6]).permutation(np.repeat(np.arange(len(counts)), counts))

    def first_of_each(self) -> list[int]:
        """Returns the first batch of each source."""
        return np.unique(self._batches(0), return_index=True)[1].tolist()

    def take(self, first: int, count: int) -> tuple[TrainingRows, np.ndarray]:
        """Returns rows, and which of them (G,) are in a batch, which begins at place `first` of the order."""
        batch, rest = divmod(first, self._batch_size)
        assert not rest and count == self._batch_size, "only whole batches have one source"
        epoch = first // len(self.rows)  # all earlier epochs have at most the batches before this one
        while self._filled(epoch + 1).sum() <= batch:
            epoch += 1
        before = self._filled(epoch)
        drawn = self._batches(epoch)
        within = batch - int(before.sum())
        source = int(drawn[within])
        number = int(before[source]) + int((drawn[:within] == source).sum())  # of the batch among those of the source
        passes, places = np.divmod(number * count + np.arange(count), self._sizes[source])
        parts = [self._pass(source, int(one))[places[passes == one]] for one in np.unique(passes)]
        return self.rows, np.concatenate(parts)
