"""Finds the exact top k of a corpus that comes in blocks; memory holds the best so far and one slice of scores.

States of blocks and ranks merge in any order. A passage of the top k is one int64 key, which sorts by (-score,
position). So the key itself decides ties, and the order in which blocks and ranks arrive does not matter.

The score of a pair is the dot product of its two embeddings, summed in fp64 and rounded to fp32: it depends on the
pair alone. The last bits of a matrix product depend on how the corpus is cut into blocks. So a matrix product, in bf16
where that is fast, only selects the pairs that its error bound cannot rule out. Only these pairs are then scored
exactly.

Shapes: Q questions, N passages of a block, K kept per question, D dimensions. A position is a passage's place in
document order, from 0 to 2^32 - 1. Every passage is added exactly once.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from rqa_ray.corpus.corpus_loss import CorpusLoss

EMPTY = torch.iinfo(torch.int64).min  # a slot without a passage: the bits of a NaN, which are below every real key
LOW_32 = 2**32 - 1
SCORES_AT_ONCE = 1 << 22  # scores of one slice of questions: 16 MB; with half of that the matrix product is slower
# numbers of embeddings that are scored exactly at once: 2 MB in fp64, which fit in the cache
NUMBERS_AT_ONCE = 1 << 18
CROWD = 8  # more than CROWD x k candidates per question are too many


def encode_keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Returns (Q, N) int64 keys of fp32 scores (Q, N) and positions (N,) or (Q, N).

    Keys in descending order are in the order of (-score, position).

    The high half of a key is the score's bits, changed so that their order is the order of scores. The low half is the
    position, reversed. Raises ValueError for a NaN score.
    """
    if scores.dtype != torch.float32:
        raise TypeError(f"Scores have to be float32, got {scores.dtype}.")
    if scores.isnan().any():
        raise ValueError("A score is NaN: an embedding is not finite, so its passages cannot be ranked.")
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0, because equal scores need equal bits
    return (_flip_negative(bits).long() << 32) | (LOW_32 - positions)


def decode_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the fp32 scores and int64 positions of keys, in the shape of `keys`."""
    bits = _flip_negative((keys >> 32).int())
    return bits.view(torch.float32), LOW_32 - (keys & LOW_32)


def _flip_negative(bits: Tensor) -> Tensor:
    """Flips the magnitude bits of negative floats, so that the bits sort as int32 like the floats.

    Floats store sign and magnitude. Applied twice, the function changes nothing.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


class RunningTopK:
    """The best `k` passages of each question among those added so far; `keys` (Q, K) int64, descending."""

    def __init__(self, num_questions: int, k: int, device: torch.device | str = "cpu"):
        self.k = k
        self.keys = torch.full((num_questions, k), EMPTY, dtype=torch.int64, device=device)

    def add(
        self,
        scores: Tensor,
        positions: Tensor,
        first_question: int = 0,
        error: Tensor | None = None,
        exact: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Adds the scores (q, N) of q questions, beginning with `first_question`, for the passages at positions (N,).

        If the scores are not exact, `error` (q,) bounds how far those of each row may be off before they are rounded
        to their type. `exact(rows, columns)` then returns the fp32 scores (C,) of the pairs that may be among the
        best.
        """
        if not scores.numel():
            return
        keys = self.keys[first_question : first_question + len(scores)]
        # the worst score that is kept for each question
        worst = torch.where(keys[:, -1] == EMPTY, -torch.inf, decode_keys(keys[:, -1])[0])
        error = torch.zeros_like(worst) if error is None else error
        crowded = bool((worst == -torch.inf).any())
        if not crowded:
            rows, columns = _at_least(scores, worst - error)
            crowded = len(rows) > CROWD * self.k * len(scores)
        if crowded:  # with this many candidates, finding the best of the block first is faster
            if scores.shape[1] > self.k:
                best = scores.topk(self.k, dim=1).values[:, -1].float()
                rounding = 0.0 if scores.dtype == torch.float32 else torch.finfo(scores.dtype).eps
                worst = torch.maximum(worst, best - best.abs() * rounding - error)
            rows, columns = _at_least(scores, worst - error)
        found = exact(rows, columns) if exact else scores[rows, columns]
        self._fold(first_question, rows, encode_keys(found, positions[columns]))

    def merge(self, keys: Tensor) -> None:
        """Adds the `keys` (Q, any K) of other passages, such as those of another rank."""
        self.keys = torch.cat([self.keys, keys], dim=1).topk(self.k, dim=1).values

    def result(self) -> tuple[Tensor, Tensor]:
        """Returns scores and positions, both (Q, min(K, passages added)), best first."""
        return decode_keys(self.keys[:, (self.keys != EMPTY).all(dim=0)])

    def _fold(self, first_question: int, rows: Tensor, keys: Tensor) -> None:
        """Adds keys (C,) for the questions `first_question` + rows (C,), which ascend."""
        questions, counts = rows.unique_consecutive(return_counts=True)
        if not len(questions):
            return
        group = torch.arange(len(questions), device=rows.device).repeat_interleave(counts)
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[group]
        added = keys.new_full((len(questions), int(counts.max())), EMPTY)
        added[group, place] = keys
        questions += first_question
        self.keys[questions] = torch.cat([self.keys[questions], added], dim=1).topk(self.k, dim=1).values


def _at_least(scores: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows and columns of the scores (q, N) that are not below their row's limit (q,); NaN is returned too."""
    limits = limits.to(scores.dtype)  # rounded like the scores, so that a score at the limit stays at the limit
    kept = (scores < limits[:, None]).logical_not_()
    if kept.shape[1] % 8:
        rows, columns = kept.nonzero(as_tuple=True)
        return rows, columns
    rows, words = kept.view(torch.int64).nonzero(as_tuple=True)  # most bytes are 0, so 8 of them are tested at once
    word, byte = kept.unflatten(1, (-1, 8))[rows, words].nonzero(as_tuple=True)
    return rows[word], words[word] * 8 + byte


def search_block(
    question_embeddings: Tensor,
    passage_embeddings: Tensor,
    positions: Tensor,
    topk: RunningTopK,
    loss: CorpusLoss | None = None,
) -> None:
    """Scores all questions (Q, D) against a block of passages (N, D) at positions (N,), and adds them to the state.

    Blocks of 4,000 to 16,000 passages are fastest. With longer blocks, each matrix product has only a few questions.
    Raises ValueError for an embedding that is not finite.
    """
    questions, passages = question_embeddings.float(), passage_embeddings.float()
    if not len(passages):
        return
    dtype = torch.float32 if loss is not None or not _bf16_is_fast(questions.device) else torch.bfloat16
    rounded_questions, lost_questions = _rounded(questions, dtype)
    rounded_passages, lost_passages = _rounded(passages, dtype)
    error = _error_bound(questions, lost_questions, passages, lost_passages.max())
    if not error.isfinite().all():
        raise ValueError("An embedding is not finite, so its passages cannot be ranked.")
    for part in question_slices(len(questions), len(passages)):
        scores = rounded_questions[part] @ rounded_passages.T
        topk.add(scores, positions, part.start, error[part], functools.partial(pair_scores, questions[part], passages))
        if loss is not None:
            loss.add(scores, positions, part.start)


def search_blocks(
    question_embeddings: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], k: int, num_threads: int = 1
) -> RunningTopK:
    """Finds the best k of a corpus that comes as blocks of positions (N,) and passage embeddings (N, D).

    Every thread takes the next block and keeps its own top k; torch's own threads are off. A block needs many small
    operations, and threads with a block each wait less for each other than threads that share every operation.
    """
    waiting, lock, before = iter(blocks), threading.Lock(), torch.get_num_threads()

    def work(_: int) -> RunningTopK:
        topk = RunningTopK(len(question_embeddings), k, question_embeddings.device)
        if num_threads > 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            while True:
                with lock:
                    block = next(waiting, None)
                if block is None:
                    return topk
                positions, passages = (part.to(question_embeddings.device) for part in block)
                search_block(question_embeddings, passages, positions, topk)

    if num_threads == 1:
        return work(0)
    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(work, range(num_threads)))
    torch.set_num_threads(before)  # a thread's setting becomes the default of later threads
    for other in found[1:]:
        found[0].merge(other.keys)
    return found[0]


def pair_scores(questions: Tensor, passages: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns (C,) fp32 scores of pairs, summed in fp64: the order of summing does not show."""
    step = max(1, NUMBERS_AT_ONCE // questions.shape[1])
    doubled = questions.double()
    scores = [
        passages.index_select(0, column).double().mul_(doubled.index_select(0, row)).sum(1).float()
        for row, column in zip(rows.split(step), columns.split(step), strict=True)
    ]
    return torch.cat([questions.new_empty(0), *scores])


def _rounded(embeddings: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns embeddings (N, D) rounded to a type, and the norms (N,) of what rounding took off."""
    if embeddings.dtype == dtype:
        return embeddings, embeddings.new_zeros(len(embeddings))
    rounded, lost = torch.empty_like(embeddings, dtype=dtype), embeddings.new_empty(len(embeddings))
    step = max(1, NUMBERS_AT_ONCE // embeddings.shape[1])
    for start in range(0, len(embeddings), step):
        part = slice(start, start + step)
        rounded[part] = embeddings[part]
        lost[part] = (embeddings[part] - rounded[part].float()).norm(dim=1)
    return rounded, lost


def _error_bound(questions: Tensor, lost_questions: Tensor, passages: Tensor, lost_passages: Tensor) -> Tensor:
    """Returns (Q,) how far the product of rounded embeddings may be from `pair_scores`, before it is rounded to bf16.

    lost_questions (Q,) and lost_passages () are norms of what rounding took off. Summing D products adds an error of
    at most D * 2^-24 of the norms' product (Higham 2002, section 3.1). Rounding the score to fp32 adds at most 2^-24
    of it. On CUDA, matrix products may use TF32 in place of fp32: 11 bits of each factor.
    """
    of_questions, of_passages = questions.norm(dim=1), passages.norm(dim=1).max()
    share = (questions.shape[1] + 2) * 2.0**-24 + (2.0**-10 if questions.is_cuda else 0.0)
    lost = lost_questions * (of_passages + lost_passages) + of_questions * lost_passages
    return 1.01 * (lost + of_questions * of_passages * share)


@functools.cache
def _bf16_is_fast(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


def question_slices(num_questions: int, num_passages: int) -> Iterator[slice]:
    """Yields slices of questions with at most SCORES_AT_ONCE scores against the passages (one question at least)."""
    step = max(1, SCORES_AT_ONCE // max(1, num_passages))
    for start in range(0, num_questions, step):
        yield slice(start, min(start + step, num_questions))
