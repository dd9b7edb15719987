"""The encoder: a transformer, pooling, and unit length where the similarity is cosine.

Shapes: B texts in a chunk, L tokens of its longest text, D dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rqa_ray.retriever.saving import EncoderSettings

Chunk = dict[str, torch.Tensor]  # input_ids and attention_mask, both (B, L)


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[:, :, None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _cls(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens[:, 0]


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "last": _last,
    "max": _max,
}


class Encoder(nn.Module):
    """Token chunks to embeddings. One forward over a list of chunks, so that DDP sees one forward a step."""

    transformer: Any
    own_dropout: dict[str, float]  # what an override replaced in the transformer's config

    def __init__(self, transformer: nn.Module, settings: EncoderSettings) -> None:
        super().__init__()
        self.own_dropout = {}
        self.transformer = transformer
        self.settings = settings
        if getattr(transformer, "pooler", None) is not None:
            # Kept, so that the saved folder has the keys that it came with; unused, so DDP must not wait for it.
            transformer.pooler.requires_grad_(False)

    def forward(self, chunks: Sequence[Chunk], seeds: Sequence[int] | None = None) -> torch.Tensor:
        """(rows, D) fp32 embeddings of all rows of all chunks, in order.

        With `seeds`, one for each chunk, the random state is set before each chunk: its dropout masks depend on the
        seed alone, so the cached step replays them and a resumed run repeats them.
        """
        return self.embed(chunks, seeds)

    def embed(self, chunks: Sequence[Chunk], seeds: Sequence[int] | None = None) -> torch.Tensor:
        """`forward` without the mixed precision that the Trainer wraps around that name."""
        embeddings = []
        for index, chunk in enumerate(chunks):
            if seeds is not None:
                torch.manual_seed(seeds[index])
            tokens = self.transformer(**chunk).last_hidden_state
            pooled = POOLINGS[self.settings.pooling](tokens.float(), chunk["attention_mask"])
            embeddings.append(nn.functional.normalize(pooled, dim=-1) if self.settings.normalize else pooled)
        return torch.cat(embeddings)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The hook by which `--gradient_checkpointing` reaches the transformer."""
        self.transformer.activation_checkpointing_enable(**kwargs)

    def activation_bytes(self, num_tokens: int, max_length: int) -> int:
        """Estimate of the memory that the graph of so many tokens holds, in bytes.

        Fitted to BERT-like encoders in fp32: about 20 values a hidden unit and layer; with dropout attention keeps its
        probabilities, a row of `max_length` for each head and token, three times.
        """
        config = self.transformer.config
        layers, hidden = config.num_hidden_layers, config.hidden_size
        values = 20 * hidden
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.transformer.modules()):
            values += 3 * config.num_attention_heads * max_length
        return 4 * layers * values * num_tokens


def length_sorted_chunks(
    rows: Sequence[np.ndarray], max_tokens: int, pad_id: int, max_rows: int | None = None
) -> tuple[list[Chunk], torch.Tensor]:
    """Cuts token rows into padded chunks of rows of like length, at most `max_tokens` tokens with padding.

    A chunk has at least one row. Also returns `order` (rows,): `chunk_rows[order]` are the rows as they were given.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    by_length = np.argsort(lengths, kind="stable")
    cuts = _cuts(lengths[by_length], max_tokens, max_rows or len(rows))
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.from_numpy(by_length)] = torch.arange(len(rows))
    groups = [by_length[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    return [_pad([rows[row] for row in group], pad_id) for group in groups], order


def _cuts(lengths: np.ndarray, max_tokens: int, max_rows: int) -> list[int]:
    """Where to cut sorted lengths (N,) so that the tokens with padding are fewest, a chunk costing 5% of its budget.

    Exact, by dynamic programming over the end of the last chunk: filling chunks one by one pads 5% more in Faire.
    """
    cost = np.zeros(len(lengths) + 1)  # of the best cut of the first so many rows
    last = np.zeros(len(lengths) + 1, dtype=np.int64)  # where its last chunk begins
    for end in range(1, len(lengths) + 1):
        length = max(int(lengths[end - 1]), 1)
        first = max(end - max(1, min(max_rows, max_tokens // length)), 0)
        costs = cost[first:end] + np.arange(end - first, 0, -1) * length
        best = int(costs.argmin())
        cost[end], last[end] = costs[best] + max_tokens / 20, first + best
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(int(last[cuts[-1]]))
    return cuts[::-1]


def _pad(rows: list[np.ndarray], pad_id: int) -> Chunk:
    shape = (len(rows), len(rows[-1]))  # sorted: the last row is the longest
    input_ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
