"""Token rows to embeddings without a graph, in chunks that suit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.token_batches import Chunk, length_sorted_chunks

# Where more makes nothing faster: on CPUs the activations fall out of the cache, GPUs are busy.
TOKENS_PER_CHUNK = {"cpu": 2_000, "cuda": 32_768}
MOST_CHUNKS_AT_A_TIME = 4  # on CPUs; Python's part of the work, some 5%, is done by one thread at a time


@dataclass
class EncodeOptions:
    """How rows are cut into chunks and computed."""

    pad_id: int
    max_tokens_per_chunk: int
    max_rows_per_chunk: int | None = None
    packed: bool = False
    mixed_precision: torch.dtype | None = None

    @classmethod
    def for_device(cls, encoder: Encoder, pad_id: int | None) -> EncodeOptions:
        """What suits the device that the encoder is on."""
        device = next(encoder.parameters()).device
        packed = encoder.can_pack and (device.type == "cpu" or encoder.packing_works())
        return cls(pad_id or 0, TOKENS_PER_CHUNK.get(device.type, TOKENS_PER_CHUNK["cuda"]), packed=packed)


def encode(
    encoder: Encoder,
    rows: Sequence[np.ndarray],
    options: EncodeOptions,
    on_chunk: Callable[[int], None] = lambda num_rows: None,
) -> torch.Tensor:
    """(N, D) fp32 embeddings of N token rows, in their order, on the encoder's device; `on_chunk` after each chunk."""
    device = next(encoder.parameters()).device
    chunks, order = length_sorted_chunks(
        rows, options.max_tokens_per_chunk, options.pad_id, options.packed, options.max_rows_per_chunk
    )
    enabled = options.mixed_precision is not None

    def embed(chunk: Chunk) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, options.mixed_precision or torch.bfloat16, enabled):
            return encoder.embed([chunk.to(device)]).float()

    parts = []
    in_threads = device.type == "cpu" and not encoder.is_compiled  # torch compiles in one thread
    for part in _in_threads(embed, chunks) if in_threads else map(embed, chunks):
        parts.append(part)
        on_chunk(len(part))
    return torch.cat(parts)[order.to(device)]


def _in_threads(embed: Callable[[Chunk], torch.Tensor], chunks: list[Chunk]) -> Iterator[torch.Tensor]:
    """A chunk a thread: a chunk's operations are too small to share, and a result depends on no number of threads."""
    threads = torch.get_num_threads()
    at_a_time = min(threads, MOST_CHUNKS_AT_A_TIME)
    if at_a_time == 1 or len(chunks) <= at_a_time:
        yield from map(embed, chunks)
        return
    pool = ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(threads // at_a_time,))
    try:
        yield from pool.map(embed, chunks)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads set becomes the default of those that come
