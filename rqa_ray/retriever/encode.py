"""Token rows to embeddings without a graph, in chunks that suit the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rqa_ray.retriever.chunks import length_sorted_chunks
from rqa_ray.retriever.encoder import Encoder

# Where more makes nothing faster: on CPUs the activations fall out of the cache, GPUs are busy.
TOKENS_PER_CHUNK = {"cpu": 2_000, "cuda": 32_768}


@dataclass
class EncodeOptions:
    """How rows are cut into chunks and computed."""

    pad_id: int
    max_tokens_per_chunk: int
    max_rows_per_chunk: int | None = None
    packed: bool = False
    mixed_precision: torch.dtype | None = None

    @classmethod
    def for_device(cls, encoder: Encoder, pad_id: int | None, bf16: bool = False) -> EncodeOptions:
        """What suits the device that the encoder is on."""
        device = next(encoder.parameters()).device
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        with mixed:
            packed = encoder.can_pack and (device.type == "cpu" or encoder.packing_works())
        tokens = TOKENS_PER_CHUNK.get(device.type, TOKENS_PER_CHUNK["cuda"])
        return cls(pad_id or 0, tokens, packed=packed, mixed_precision=torch.bfloat16 if bf16 else None)


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
    parts = []
    with torch.inference_mode(), torch.autocast(device.type, options.mixed_precision or torch.bfloat16, enabled):
        for chunk in chunks:
            parts.append(encoder.embed([chunk.to(device)]).float())
            on_chunk(len(parts[-1]))
    return torch.cat(parts)[order.to(device)]
