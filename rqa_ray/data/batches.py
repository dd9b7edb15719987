"""Global batches: the same rows at the same step for any number of ranks, dealt to ranks and cut into token batches.

1. Epoch e's order is a permutation seeded by (seed, e), or where the rows do not fit in memory one in windows
   (`windows.py`); the epochs follow each other without a gap, so rows left over at the end of one open the next.
   Batch b is the b-th run of G rows: an index, not a replay.
2. Hard negatives of the batch are drawn by a generator seeded by (seed, b) and, after the first, by their round.
3. Questions (with their passages) and hard negatives are sorted by length and dealt to ranks in turn, there and back.
4. A rank's texts are cut into length-sorted token batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rqa_ray.data.passages import Negatives
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.windows import WindowedRows
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches

UNPLANNED = ForwardPlan(1_000)  # of batches that are looked at before there is a plan


@dataclass
class RankBatch:
    """One rank's part of a global batch: n questions, m passages (n positives, hard negatives, padding)."""

    token_batches: list[TokenBatch]
    order: torch.Tensor  # (n + texts of passages,): rows of the token batches as questions, then passages
    num_questions: int
    passage_ids: torch.Tensor  # (m,)
    is_passage: torch.Tensor  # (m,) false for padding rows
    gold_ids: torch.Tensor  # (n, g)
    global_batch_size: int
    index: int
    rows: np.ndarray  # (n,) row numbers, for messages

    def to(self, device: torch.device) -> RankBatch:
        """The same batch with its tensors on a device."""
        self.token_batches = [token_batch.to(device) for token_batch in self.token_batches]
        for name in ("order", "passage_ids", "is_passage", "gold_ids"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self


class ShuffledRows:
    """Rows that are all in memory, in the order of the epochs."""

    def __init__(self, rows: TrainingRows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)  # a batch may straddle two epochs

    def __len__(self) -> int:
        return len(self.rows)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def take(self, first: int, count: int) -> tuple[TrainingRows, np.ndarray]:
        """Rows, and which of them (count,) are at some consecutive places of the order."""
        epochs, within = np.divmod(first + np.arange(count), len(self.rows))
        parts = [self._permutation(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.rows, np.concatenate(parts)


class GlobalBatches(Dataset):
    """`batches[b]` is this rank's part of global batch b; any b, in any order, always the same.

    While batch b is in use, b + 1 is made in a thread, so that the step does not wait for it.
    """

    def __init__(
        self,
        rows: TrainingRows | WindowedRows,
        global_batch_size: int,
        hard_neg_ratio: float,
        seed: int,
        pad_id: int,
        plan: ForwardPlan = UNPLANNED,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not world_size <= global_batch_size <= len(rows):
            raise ValueError(f"global_batch_size={global_batch_size}: needs {world_size} to {len(rows)} questions")
        self.rows = ShuffledRows(rows, seed) if isinstance(rows, TrainingRows) else rows
        self.global_batch_size = global_batch_size
        self.num_negatives = int(hard_neg_ratio * global_batch_size)
        self.seed = seed
        self.pad_id, self.plan = pad_id, plan
        self.rank, self.world_size = rank, world_size
        self._negatives: Negatives | None = None  # in place of those that the rows bring
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[RankBatch]] = {}  # the next batch

    def __len__(self) -> int:
        return len(self.rows)

    def with_plan(self, plan: ForwardPlan) -> GlobalBatches:
        """The same batches, cut into other token batches."""
        other = copy.copy(self)
        other.plan, other._ahead = plan, {}
        return other

    def take(self, batch: int) -> tuple[TrainingRows, np.ndarray]:
        """Rows, and which of them (G,) are a global batch."""
        return self.rows.take(batch * self.global_batch_size, self.global_batch_size)

    def set_negatives(self, negatives: Negatives) -> None:
        """Puts other hard negatives in the place of all pairs', from the next batch on that is asked for.

        Pairs are numbered in the order of the input, for rows in windows too. A batch made ahead is made again.

        Raises:
            ValueError: they are of another number of pairs.
        """
        if negatives.num_pairs != len(self.rows):
            raise ValueError(f"hard negatives of {negatives.num_pairs:,} pairs, where there are {len(self.rows):,}")
        wait([future for future in self._ahead.values() if not future.cancel()])
        self._ahead, self._negatives = {}, negatives

    def negatives_of(self, rows: TrainingRows, numbers: np.ndarray) -> tuple[Negatives, np.ndarray]:
        """Hard negatives, and the pairs in them that some rows are."""
        return (self._negatives, rows.pairs[numbers]) if self._negatives else (rows.negatives, numbers)

    def draw_negatives(self, batch: int) -> np.ndarray:
        """Numbers of the hard negatives of a global batch: distinct passages, none a gold of the batch."""
        if self.num_negatives == 0:
            return np.zeros(0, dtype=np.int64)
        rows, numbers = self.take(batch)
        negatives, pairs = self.negatives_of(rows, numbers)
        pool = negatives.of_pairs(pairs)
        ids, first = np.unique(negatives.ids[pool], return_index=True)
        golds = np.concatenate([rows.golds[number] for number in numbers])
        pool = pool[first[~np.isin(ids, golds)]]
        seed = [self.seed, batch, 1] + [negatives.round] * (negatives.round > 0)
        return pool[np.random.default_rng(seed).permutation(len(pool))[: self.num_negatives]]

    def __getitem__(self, batch: int) -> RankBatch:
        future = self._ahead.get(batch) or self._thread.submit(self.make, batch)
        self._ahead = {batch + 1: self._thread.submit(self.make, batch + 1)}
        return future.result()

    def make(self, batch: int) -> RankBatch:
        """This rank's part of a global batch: a function of its number."""
        rows, numbers = self.take(batch)
        negatives, _ = self.negatives_of(rows, numbers)
        drawn = self.draw_negatives(batch)
        lengths = rows.questions.lengths[numbers] + rows.passages.lengths[numbers]
        mine = deal(numbers, lengths, self.rank, self.world_size)
        mine_negatives = deal(drawn, negatives.lengths(drawn), self.rank, self.world_size)

        texts = [rows.questions[number] for number in mine]
        texts += [rows.passages[number] for number in mine]
        texts += [negatives.tokens(number) for number in mine_negatives]
        token_batches, order = length_sorted_batches(texts, self.plan.max_tokens, self.pad_id, self.plan.packed)

        # The gather needs as many passages from every rank: the most that a rank can be dealt.
        num_passages = -(-len(numbers) // self.world_size) + -(-self.num_negatives // self.world_size)
        ids = np.concatenate([rows.passage_ids[mine], negatives.ids[mine_negatives]])
        padding = num_passages - len(ids)
        golds = [rows.golds[number] for number in mine]
        width = max(map(len, golds))
        return RankBatch(
            token_batches=token_batches,
            order=order,
            num_questions=len(mine),
            passage_ids=torch.from_numpy(np.pad(ids, (0, padding))),
            is_passage=torch.arange(num_passages) < len(ids),
            gold_ids=torch.from_numpy(np.stack([np.pad(gold, (0, width - len(gold)), "edge") for gold in golds])),
            global_batch_size=self.global_batch_size,
            index=batch,
            rows=mine,
        )


def deal(items: np.ndarray, lengths: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's share of items sorted by (length, number), dealt there and back: even in items and in tokens."""
    ordered = items[np.lexsort([items, lengths])]
    turn = np.arange(len(items)) % (2 * world_size)
    return ordered[np.where(turn < world_size, turn, 2 * world_size - 1 - turn) == rank]


class EpochBatches(Sampler):
    """Numbers of an epoch's batches, as `transformers.Trainer` counts epochs: each in a list, a batch of one index."""

    def __init__(self, batches: GlobalBatches, gradient_accumulation_steps: int) -> None:
        per_step = batches.global_batch_size * gradient_accumulation_steps
        self.num_batches = max(1, len(batches) // per_step) * gradient_accumulation_steps
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.num_batches):
            yield [self.epoch * self.num_batches + index]


class BatchLoader(DataLoader):
    """A DataLoader that knows its epoch: the Trainer sets it before each pass, and skips by index on resume."""

    def __init__(self, batches: GlobalBatches, gradient_accumulation_steps: int) -> None:
        self.epoch_batches = EpochBatches(batches, gradient_accumulation_steps)
        super().__init__(batches, batch_sampler=self.epoch_batches, collate_fn=_only)

    def set_epoch(self, epoch: int) -> None:
        self.epoch_batches.set_epoch(epoch)


def _only(batch: list[RankBatch]) -> RankBatch:
    return batch[0]
