"""Computes attention over texts that are packed one after the other in a token batch, without padding between them.

The function is registered in transformers' attention interface. A call that does not say where the texts begin gets
transformers' own SDPA.

On CUDA, one kernel of torch attends to all texts at once: FlashAttention (Dao 2023), or the memory-efficient kernel in
fp32 and on GPUs before Ampere, which has no sliding window. SDPA over a nested tensor would call the same kernels, but
its overhead is larger than the time of the kernels.

On CPUs, `cpu_attention.py` attends to texts of equal length together.

Shapes: H heads, T tokens in the token batch, n texts, d dimensions of a head.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rqa_ray.retriever.cpu_attention import Reach, attend
from rqa_ray.retriever.token_batches import TokenBatch

NAME = "rqa_ray_packed"


def packed_arguments(token_batch: TokenBatch, causal: bool) -> dict[str, Any]:
    """Returns the arguments of the model that make its attention packed, for a packed token batch.

    The mask is not read. transformers leaves a mask of four dimensions as it is; without one, it would make a mask of
    T x T for causal attention.
    """
    device = token_batch.input_ids.device
    shared = {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device), "causal": causal}
    if device.type == "cpu":
        return shared | {"text_lengths": token_batch.lengths}
    return shared | {
        "text_offsets": token_batch.offsets,
        "longest_text": token_batch.lengths[-1],
        "use_flash": has_flash(device),
    }


def has_flash(device: torch.device) -> bool:
    """Returns whether torch's FlashAttention runs on a device, in bf16 and fp16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    text_lengths: list[int] | None = None,
    text_offsets: torch.Tensor | None = None,
    longest_text: int = 0,
    use_flash: bool = False,
    causal: bool = False,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns (1, T, H, d) from query, key and value (1, H, T, d); every text attends to itself only.

    The texts are given by `text_lengths` (n lengths in tokens, ascending) or by `text_offsets` ((n + 1,) int32, the
    places where the texts begin). A layer with a sliding window passes `sliding_window`, as transformers defines it.
    """
    if text_lengths is None and text_offsets is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if torch.is_autocast_enabled(query.device.type):  # rotary positions turn query and key into fp32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (part.to(dtype) for part in (query, key, value))
    groups = query.shape[1] // key.shape[1]  # query heads that share one key and one value
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if sliding_window is not None and getattr(module, "is_causal", False) and not causal:
        # In a decoder whose config switches causal attention off, transformers' masks count the window's last token.
        sliding_window += 1
    reach = Reach(causal, sliding_window)
    if text_lengths is not None:
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
        return attend(q, k, v, text_lengths, reach, dropout, scaling or query.shape[-1] ** -0.5)[None], None
    return _at_once(query, key, value, text_offsets, longest_text, reach, use_flash, dropout, scaling), None


def _at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor | None,
    longest: int,
    reach: Reach,
    use_flash: bool,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """Attends to all texts in one kernel of the GPU: (1, T, H, d) from (1, H, T, d).

    Raises:
        RuntimeError: no kernel has a window for this type of numbers. `Encoder.packing_works` finds it out.
    """
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    texts = offsets, offsets, longest, longest
    farthest, causal = reach.farthest(longest), reach.causal
    if use_flash and query.dtype != torch.float32:
        ahead = 0 if causal and farthest is not None else farthest
        options = {"scale": scale, "window_size_left": farthest, "window_size_right": ahead}
        flash = torch.ops.aten._flash_attention_forward
        return flash(query[0], key[0], value[0], *texts, dropout, causal, False, **options)[0][None]
    if farthest is not None:
        raise RuntimeError("torch's memory-efficient attention has no sliding window")
    efficient, mask, for_backward = torch.ops.aten._efficient_attention_forward, int(causal), query.requires_grad
    return efficient(query, key, value, None, *texts, dropout, mask, for_backward, scale=scale)[0]


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
