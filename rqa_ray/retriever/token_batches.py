"""Cuts token rows into token batches. A token batch is what one forward pass computes: texts of similar length.

A token batch is packed (one text after the other, without padding; see `attention.py`) or padded to its longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

# pooling unfolds a packed token batch to (texts, longest text): at most this many times the budget of tokens
MAX_SPREAD = 4


@dataclass
class TokenBatch:
    """The input of one forward pass: B texts with T tokens in sum, the longest text with L tokens."""

    input_ids: torch.Tensor  # (1, T) if packed, (B, L) if padded
    lengths: list[int]  # lengths of the B texts, ascending (tokens)
    attention_mask: torch.Tensor | None = None  # (B, L), only if padded
    position_ids: torch.Tensor | None = None  # (1, T) the place of each token in its text, only if packed
    offsets: torch.Tensor | None = None  # (B + 1,) int32, where the texts begin, only if packed
    places: torch.Tensor | None = None  # (T,) the place of each token in a padded (B * L), only if packed
    prompt_lengths: list[int] | None = None  # for each text, how many tokens at its start pooling leaves out

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the forward pass computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> TokenBatch:
        """Returns the same token batch with its tensors on a device."""
        moved = {name: _moved(value, device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return TokenBatch(**(vars(self) | moved))


def _moved(value: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()  # else the copy waits until the GPU has done all that it was given before
    return value.to(device, non_blocking=True)


def length_sorted_batches(
    rows: Sequence[np.ndarray], max_tokens: int, pad_id: int, packed: bool = False, max_rows: int | None = None
) -> tuple[list[TokenBatch], torch.Tensor]:
    """Cuts token rows into token batches of similar lengths, with at most `max_tokens` tokens each (with padding).

    A single row that is longer gets a token batch of its own. The token batch with the longest rows comes first: the
    memory that it needs is enough for all others.

    Also returns `order` (rows,), which restores the order of the input: `batch_rows[order]` are the rows as given.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    by_length = np.argsort(lengths, kind="stable")
    cuts = _cuts(lengths[by_length], max_tokens, max_rows or len(rows), packed)
    groups = [by_length[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)][::-1]
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.from_numpy(np.concatenate([by_length[:0], *groups]))] = torch.arange(len(rows))
    texts = [[rows[row] for row in group] for group in groups]
    return [_pack(group) if packed else _pad(group, pad_id) for group in texts], order


def _cuts(lengths: np.ndarray, max_tokens: int, max_rows: int, packed: bool) -> list[int]:
    """Finds where to cut sorted lengths (N,) so that the number of computed tokens is smallest.

    Each token batch counts as 5% of its budget of tokens, so that there are not too many. The result is exact, by
    dynamic programming over the end of the last token batch. Filling one token batch after the other pads 5% more on
    Faire.
    """
    tokens_before = np.concatenate([[0], np.cumsum(lengths)])
    cost = np.zeros(len(lengths) + 1)  # cost[i]: of the best cut of the first i rows
    last = np.zeros(len(lengths) + 1, dtype=np.int64)  # last[i]: where the last token batch of that cut begins
    for end in range(1, len(lengths) + 1):
        longest = max(int(lengths[end - 1]), 1)
        if packed:
            fitting = end - int(np.searchsorted(tokens_before, tokens_before[end] - max_tokens))
            fitting = min(fitting, MAX_SPREAD * max_tokens // longest)
        else:
            fitting = max_tokens // longest
        first = end - max(1, min(max_rows, fitting, end))
        tokens = tokens_before[end] - tokens_before[first:end] if packed else np.arange(end - first, 0, -1) * longest
        costs = cost[first:end] + tokens
        best = int(costs.argmin())
        cost[end], last[end] = costs[best] + max_tokens / 20, first + best
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(int(last[cuts[-1]]))
    return cuts[::-1]


def _pad(rows: list[np.ndarray], pad_id: int) -> TokenBatch:
    lengths = [len(row) for row in rows]
    shape = (len(rows), lengths[-1])  # the rows are sorted, so the last one is the longest
    input_ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)], mask[index, : len(row)] = row, 1
    input_ids, prompt_lengths = _unmarked(input_ids, lambda marked: marked.sum(1))
    return TokenBatch(
        torch.from_numpy(input_ids), lengths, attention_mask=torch.from_numpy(mask), prompt_lengths=prompt_lengths
    )


def _pack(rows: list[np.ndarray]) -> TokenBatch:
    lengths = [len(row) for row in rows]
    positions = np.concatenate([np.arange(length) for length in lengths])
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    ids, prompt_lengths = _unmarked(
        np.concatenate(rows).astype(np.int64), lambda marked: np.add.reduceat(marked, offsets[:-1], dtype=np.int64)
    )
    return TokenBatch(
        torch.from_numpy(ids)[None],
        lengths,
        position_ids=torch.from_numpy(positions)[None],
        offsets=torch.from_numpy(offsets),
        places=torch.from_numpy(np.repeat(np.arange(len(rows)) * lengths[-1], lengths) + positions),
        prompt_lengths=prompt_lengths,
    )


def _unmarked(ids: np.ndarray, count: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, list[int] | None]:
    """Removes `TextTokenizer`'s marks of prefix tokens, and counts the marked tokens of each text.

    Returns None in place of the counts if no token is marked.
    """
    marked = ids < 0
    return (np.where(marked, ~ids, ids), count(marked).tolist()) if marked.any() else (ids, None)
