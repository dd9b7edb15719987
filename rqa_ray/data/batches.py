"""Makes global batches: the same rows at the same step for any number of ranks, shared among ranks as token batches.

1. The order of the rows in epoch e is a permutation seeded by (seed, e). If the rows do not fit in memory, the
   permutation goes by windows (`windows.py`). If each batch has rows of one source, the sources are drawn
   (`orders.py`). Epochs follow each other without a gap: rows left over at the end of one epoch begin the next batch.
   Batch b is the b-th run of G rows, so any batch can be made directly.
2. Hard negatives of the batch, some of each pair's own and a share of what all pairs have, are drawn by generators
   that are seeded by (seed, b) and, after the first round of hard negatives, by the round.
3. Questions (with their passages) and hard negatives are sorted by length and dealt to the ranks in turn, back and
   forth.
4. The texts of a rank are cut into token batches of similar length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rqa_ray.data.orders import RowsBySource, ShuffledRows
from rqa_ray.data.passages import Negatives
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.windows import WindowedRows
from rqa_ray.retriever.distillation import TeacherScores
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches

UNPLANNED = ForwardPlan(1_000)  # the plan of batches that are made before a plan is chosen


@dataclass
class RankBatch:
    """One rank's share of a global batch: n questions and m passages (n positives, hard negatives, then padding)."""

    token_batches: list[TokenBatch]
    # (n + texts of passages,) puts the rows of the token batches in order: questions, then passages
    order: torch.Tensor
    num_questions: int
    passage_ids: torch.Tensor  # (m,)
    is_passage: torch.Tensor  # (m,) bool, false for padding rows
    gold_ids: torch.Tensor  # (n, g)
    global_batch_size: int
    index: int
    rows: np.ndarray  # (n,) numbers of the rows, for messages
    teacher: TeacherScores | None = None  # of the n questions with their golds and hard negatives, on any rank

    def to(self, device: torch.device) -> RankBatch:
        """Returns the same batch with its tensors on a device."""
        self.token_batches = [token_batch.to(device) for token_batch in self.token_batches]
        for name in ("order", "passage_ids", "is_passage", "gold_ids"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        self.teacher = self.teacher and self.teacher.to(device)
        return self


class GlobalBatches(Dataset):
    """The global batches of a run: `batches[b]` is this rank's share of batch b, the same at each call.

    While batch b is in use, a thread makes batch b + 1, so that the step does not wait for it.
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
        negatives_per_question: int = 0,
        sources: np.ndarray | None = None,
    ) -> None:
        """Takes the source (N,) of each row if each batch has rows of one source; the rows are then `TrainingRows`."""
        if not world_size <= global_batch_size <= len(rows):
            raise ValueError(f"global_batch_size={global_batch_size}: needs {world_size} to {len(rows)} questions")
        self.rows: ShuffledRows | WindowedRows
        if not isinstance(rows, TrainingRows):
            self.rows = rows
        elif sources is None:
            self.rows = ShuffledRows(rows, seed)
        else:
            self.rows = RowsBySource(rows, seed, sources, global_batch_size)
        self.global_batch_size = global_batch_size
        self.num_negatives = int(hard_neg_ratio * global_batch_size)
        self.negatives_per_question = negatives_per_question
        self.seed = seed
        self.pad_id, self.plan = pad_id, plan
        self.rank, self.world_size = rank, world_size
        self._negatives: Negatives | None = None  # replaces the hard negatives that the rows bring
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[RankBatch]] = {}  # the batch that a thread is making

    def __len__(self) -> int:
        return len(self.rows)

    def with_plan(self, plan: ForwardPlan) -> GlobalBatches:
        """Returns the same batches, cut into token batches by another plan."""
        other = copy.copy(self)
        other.plan, other._ahead = plan, {}
        return other

    def take(self, batch: int) -> tuple[TrainingRows, np.ndarray]:
        """Returns rows, and which of them (G,) are in a global batch."""
        return self.rows.take(batch * self.global_batch_size, self.global_batch_size)

    def to_plan_from(self) -> list[int]:
        """Returns the batches whose sizes stand for all: the first one, or the first one of each source."""
        return self.rows.first_of_each() if isinstance(self.rows, RowsBySource) else [0]

    def set_negatives(self, negatives: Negatives) -> None:
        """Replaces the hard negatives of all pairs, from the next batch on.

        Pairs are numbered in the order of the input, also where rows come in windows. A batch that was made ahead is
        made again.

        Raises:
            ValueError: the hard negatives are for another number of pairs.
        """
        if negatives.num_pairs != len(self.rows):
            raise ValueError(f"hard negatives of {negatives.num_pairs:,} pairs, where there are {len(self.rows):,}")
        wait([future for future in self._ahead.values() if not future.cancel()])
        self._ahead, self._negatives = {}, negatives

    def negatives_of(self, rows: TrainingRows, numbers: np.ndarray) -> tuple[Negatives, np.ndarray]:
        """Returns the hard negatives, and the numbers of the pairs of some rows in them."""
        return (self._negatives, rows.pairs[numbers]) if self._negatives else (rows.negatives, numbers)

    def draw_negatives(self, batch: int) -> np.ndarray:
        """Draws the numbers of a global batch's hard negatives: distinct passages, none of which is its gold.

        First come `negatives_per_question` of each pair's own, then `num_negatives` of what all pairs have left.
        """
        if not (self.num_negatives or self.negatives_per_question):
            return np.zeros(0, dtype=np.int64)
        rows, numbers = self.take(batch)
        negatives, pairs = self.negatives_of(rows, numbers)
        golds = np.concatenate([rows.golds[number] for number in numbers])
        seed, round = [self.seed, batch], [negatives.round] * (negatives.round > 0)
        own = draw_of_each(
            negatives, pairs, golds, self.negatives_per_question, np.random.default_rng([*seed, 4, *round])
        )
        pool = distinct(negatives, negatives.of_pairs(pairs), np.concatenate([golds, negatives.ids[own]]))
        order = np.random.default_rng([*seed, 1, *round]).permutation(len(pool))
        return np.concatenate([own, pool[order[: self.num_negatives]]])

    def __getitem__(self, batch: int) -> RankBatch:
        future = self._ahead.get(batch) or self._thread.submit(self.make, batch)
        self._ahead = {batch + 1: self._thread.submit(self.make, batch + 1)}
        return future.result()

    def make(self, batch: int) -> RankBatch:
        """Makes this rank's share of a global batch; the result depends on its number alone."""
        rows, numbers = self.take(batch)
        drawn = self.draw_negatives(batch)
        lengths = rows.questions.lengths[numbers] + rows.passages.lengths[numbers]
        mine = deal(numbers, lengths, self.rank, self.world_size)
        negatives, pairs = self.negatives_of(rows, mine)
        mine_negatives = deal(drawn, negatives.lengths(drawn), self.rank, self.world_size)

        texts = [rows.questions[number] for number in mine]
        texts += [rows.passages[number] for number in mine]
        texts += [negatives.tokens(number) for number in mine_negatives]
        token_batches, order = length_sorted_batches(texts, self.plan.max_tokens, self.pad_id, self.plan.packed)

        # The gather needs the same number of passages from every rank: the largest number that a rank can get.
        most = max(self.num_negatives, len(drawn))
        num_passages = -(-len(numbers) // self.world_size) + -(-most // self.world_size)
        ids = np.concatenate([rows.passage_ids[mine], negatives.ids[mine_negatives]])
        padding = num_passages - len(ids)
        golds = [rows.golds[number] for number in mine]
        width = int((rows.golds.offsets[numbers + 1] - rows.golds.offsets[numbers]).max())  # the same on all ranks
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
            teacher=negatives.teacher_scores(pairs, rows.passage_ids[mine]),
        )


def distinct(negatives: Negatives, numbers: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """Returns, of the numbers of some hard negatives, one for each passage whose id is wanted, in the order of ids."""
    ids, first = np.unique(negatives.ids[numbers], return_index=True)
    return numbers[first[~np.isin(ids, unwanted)]]


def draw_of_each(
    negatives: Negatives, pairs: np.ndarray, unwanted: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draws up to `count` hard negatives of each pair (their numbers), whose ids are wanted; each passage once."""
    numbers = negatives.of_pairs(pairs)
    place = np.repeat(np.arange(len(pairs)), negatives.offsets[pairs + 1] - negatives.offsets[pairs])
    wanted = ~np.isin(negatives.ids[numbers], unwanted)
    numbers, place = numbers[wanted], place[wanted]
    order = np.lexsort([generator.random(len(numbers)), place])  # pair after pair, shuffled within
    first = np.searchsorted(place, place)  # of the pair
    return distinct(negatives, numbers[order[np.arange(len(order)) - first < count]], unwanted)


def deal(items: np.ndarray, lengths: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Returns a rank's share of items sorted by (length, number): dealt back and forth, so that shares are equal."""
    ordered = items[np.lexsort([items, lengths])]
    turn = np.arange(len(items)) % (2 * world_size)
    return ordered[np.where(turn < world_size, turn, 2 * world_size - 1 - turn) == rank]


class EpochBatches(Sampler):
    """The batch numbers of an epoch, as `transformers.Trainer` counts epochs: for each batch a list of one index."""

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
    """A DataLoader that knows its epoch: the Trainer sets it before each pass, and skips by index after a resume."""

    def __init__(self, batches: GlobalBatches, gradient_accumulation_steps: int) -> None:
        self.epoch_batches = EpochBatches(batches, gradient_accumulation_steps)
        super().__init__(batches, batch_sampler=self.epoch_batches, collate_fn=_only)

    def set_epoch(self, epoch: int) -> None:
        self.epoch_batches.set_epoch(epoch)


def _only(batch: list[RankBatch]) -> RankBatch:
    return batch[0]
