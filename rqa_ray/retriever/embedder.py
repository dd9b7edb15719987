"""Token rows to embeddings without a graph, in token batches that suit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches

# Where more makes nothing faster: on CPUs the activations fall out of the cache, GPUs are busy.
TOKENS_PER_BATCH = {"cpu": 2_000, "cuda": 32_768}
MOST_BATCHES_AT_A_TIME = 4  # on CPUs; Python's part of the work, some 5%, is done by one thread at a time


@dataclass
class EncodeOptions:
    """How rows are cut into token batches and computed."""

    pad_id: int
    max_tokens_per_chunk: int
    max_rows: int | None = None
    packed: bool = False
    mixed_precision: torch.dtype | None = None

    @classmethod
    def for_device(cls, encoder: Encoder, pad_id: int | None) -> EncodeOptions:
        """What suits the device that the encoder is on."""
        device = next(encoder.parameters()).device
        packed = encoder.can_pack and (device.type == "cpu" or encoder.packing_works())
        return cls(pad_id or 0, TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"]), packed=packed)


def encode(
    encoder: Encoder,
    rows: Sequence[np.ndarray],
    options: EncodeOptions,
    on_batch: Callable[[int], None] = lambda num_rows: None,
) -> torch.Tensor:
    """(N, D) fp32 embeddings of N token rows, in their order, on the encoder's device; `on_batch` after each batch."""
    device = next(encoder.parameters()).device
    token_batches, order = length_sorted_batches(
        rows, options.max_tokens_per_chunk, options.pad_id, options.packed, options.max_rows
    )
    enabled = options.mixed_precision is not None

    def embed(token_batch: TokenBatch) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, options.mixed_precision or torch.bfloat16, enabled):
            return encoder.embed([token_batch.to(device)]).float()

    parts = []
    in_threads = device.type == "cpu" and not encoder.is_compiled  # torch compiles in one thread
    for part in _in_threads(embed, token_batches) if in_threads else map(embed, token_batches):
        parts.append(part)
        on_batch(len(part))
    return torch.cat(parts)[order.to(device)]


def _in_threads(
    embed: Callable[[TokenBatch], torch.Tensor], token_batches: list[TokenBatch]
) -> Iterator[torch.Tensor]:
    """A token batch a thread: its operations are too small to share, and a result depends on no number of threads."""
    threads = torch.get_num_threads()
    at_a_time = min(threads, MOST_BATCHES_AT_A_TIME)
    if at_a_time == 1 or len(token_batches) <= at_a_time:
        yield from map(embed, token_batches)
        return
    pool = ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(threads // at_a_time,))
    try:
        yield from pool.map(embed, token_batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads set becomes the default of those that come
