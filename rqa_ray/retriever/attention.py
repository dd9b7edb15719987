"""Computes attention over texts that are packed one after the other in a token batch, without padding between them.

The function is registered in transformers' attention interface. A call that does not say where the texts begin gets
transformers' own SDPA.

On CUDA, one kernel of torch attends to all texts at once: FlashAttention (Dao 2023), or the memory-efficient kernel in
fp32 and on GPUs before Ampere, which has no sliding window. SDPA over a nested tensor would call the same kernels, but
its overhead is larger than the time of the kernels.

On CPUs, texts of equal length are attended to together. Torch's fused kernel computes them, with two exceptions, for
which `_Attention` is faster:

* with dropout, torch leaves the fused kernel, computes in fp32 and keeps four values for each probability;
* in bf16, the fused kernel is slower, and its backward pass takes two to five times as long. With AMX its forward
  pass is the faster one, so evaluation uses the fused kernel there.

Shapes: H heads, T tokens in the token batch, n texts of L tokens with the same length, d dimensions of a head.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rqa_ray.retriever.dropout import factor_of_kept, keep_mask
from rqa_ray.retriever.token_batches import TokenBatch

NAME = "rqa_ray_packed"
# Sums of powers of two in bf16 that are still exact enough. The inverse of a sum times a gradient is in range too.
SMALLEST_SUM, LARGEST_SUM = 2.0**-60, 2.0**60


@dataclass(frozen=True)
class Reach:
    """Which tokens of a text a token attends to: all of them, unless one of the fields says otherwise."""

    causal: bool = False  # only to itself and earlier tokens
    window: int | None = None  # only to tokens that are fewer than this number of places away

    def farthest(self, length: int) -> int | None:
        """Returns how far away a token may be; None if the window leaves out no token of a text with L tokens."""
        return self.window - 1 if self.window is not None and self.window < length else None

    def allowed(self, length: int) -> torch.Tensor | None:
        """Returns (L, L) bool, whether the token of a row attends to that of a column; None if all attend to all."""
        if self.farthest(length) is None and not self.causal:
            return None
        return self.cut_(torch.ones(length, length, dtype=torch.bool))

    def cut_(self, values: torch.Tensor) -> torch.Tensor:
        """Sets values (..., L, L) to 0, in place, where the token of a row does not attend to that of a column."""
        farthest = self.farthest(values.shape[-1])
        if farthest is not None:
            values.triu_(-farthest).tril_(farthest)
        return values.tril_() if self.causal else values


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


@cache
def has_amx() -> bool:
    """Returns whether the CPU multiplies bf16 matrices with AMX; False where torch is too old to tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


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
        return _run_by_run(query[0], key[0], value[0], text_lengths, reach, dropout, scaling), None
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


def _run_by_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    reach: Reach,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """Attends to each run of texts of equal length, on a CPU: (1, T, H, d) from (H, T, d)."""
    runs = [(length, len(list(texts))) for length, texts in groupby(lengths)]
    # With slices in place of `split`, each run would have a gradient of the size of all texts together.
    parts = [part.split([length * texts for length, texts in runs], dim=1) for part in (query, key, value)]
    attended = []
    for (length, _), *run in zip(runs, *parts, strict=True):
        q, k, v = (part.unflatten(1, (-1, length)).transpose(0, 1) for part in run)
        fused = q.dtype != torch.bfloat16 or (torch.is_inference_mode_enabled() and has_amx())
        if dropout or not fused:
            result = _Attention.apply(q, k, v, reach, dropout, scale or query.shape[-1] ** -0.5)
        else:
            is_causal = reach.causal and reach.farthest(length) is None  # is faster than a mask
            mask = None if is_causal else reach.allowed(length)
            result = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)
        attended.append(result.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)[None]


class _Attention(torch.autograd.Function):
    """Softmax attention with dropout of the probabilities, and its gradient; query, key and value are (n, H, L, d).

    Passes over the (n, H, L, L) tensors are what takes time. So the factors of a row are multiplied into the
    (n, H, L, d) tensors, and the backward pass takes its sums over rows from the output, as FlashAttention does.
    """

    @staticmethod
    def forward(ctx, query, key, value, reach, dropout, scale):
        with torch.autocast("cpu", enabled=False):
            weights, factors = _softmax(query, key, reach, scale)
            kept = keep_mask(weights.shape, dropout) if dropout else None
            factors = factors * factor_of_kept(dropout)
            attended = torch.matmul(_kept(weights, kept), value).mul_(factors)
            ctx.save_for_backward(query, key, value, weights, factors, kept, attended)
            ctx.dropout, ctx.scale = dropout, scale
            return attended

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, weights, factors, kept, attended = ctx.saved_tensors
        gradient = gradient * factors
        mean = (gradient * attended).sum(dim=3, keepdim=True).div_(factor_of_kept(ctx.dropout))
        of_scores = torch.matmul(gradient, value.transpose(2, 3))
        if kept is not None:
            kept = kept.to(weights.dtype)
            of_scores.mul_(kept)
        of_value = torch.matmul(_kept(weights, kept).transpose(2, 3), gradient)
        of_scores.sub_(mean).mul_(weights)
        of_query = torch.matmul(of_scores, key).mul_(ctx.scale)
        of_key = torch.matmul(of_scores.transpose(2, 3), query).mul_(ctx.scale)
        return of_query, of_key, of_value, None, None, None


def _softmax(query: torch.Tensor, key: torch.Tensor, reach: Reach, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weights (n, H, L, L), and the factors (n, H, L, 1) that make them the shares of a softmax."""
    if query.dtype == torch.bfloat16:
        # Softmax subtracts each row's maximum to keep the powers in range, and torch takes longer for the maximum than
        # for the powers. The sums tell whether the powers were in range without it.
        weights = reach.cut_(torch.matmul(query * (scale * math.log2(math.e)), key.transpose(2, 3)).exp2_())
        sums = weights.sum(dim=3, keepdim=True)
        least, most = sums.aminmax()
        if least > SMALLEST_SUM and most < LARGEST_SUM:
            return weights, sums.reciprocal_()
    scores, allowed = torch.matmul(query * scale, key.transpose(2, 3)), reach.allowed(query.shape[2])
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    # torch computes the softmax in fp32 for every type
    return scores.softmax(dim=3), scores.new_ones(())


def _kept(values: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return values if kept is None else kept.to(values.dtype, copy=True).mul_(values)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
