"""Attention over texts that lie one after the other in a chunk, so that no token is padding.

Registered in transformers' attention interface; a forward call without `chunk` is transformers' own SDPA. On CUDA the
texts are a nested tensor, whose SDPA calls FlashAttention's variable-length kernel (in fp32 the memory-efficient
one). On CPUs runs of texts of equal length are attended to together; where there is dropout by an own function, since
torch's leaves the fused kernel, computes in fp32 and keeps four values a probability; and in bf16, where the fused
kernel's backward takes two to five times as long.

Shapes: H heads, T tokens of the chunk, n texts of L tokens in a run, d dimensions of a head.
"""

from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rqa_ray.retriever.chunks import Chunk
from rqa_ray.retriever.dropout import apply_mask, keep_mask

NAME = "rqa_ray_packed"
# Their positions can be passed in and their attention is full and without a bias; each is compared in the tests.
MODEL_TYPES = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
)
RUN_BY_RUN = ("cpu",)  # devices without a kernel for texts of unequal length


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    chunk: Chunk | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(1, T, H, d) from query, key and value (1, H, T, d): every text attends to itself."""
    if chunk is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.device.type in RUN_BY_RUN:
        return _run_by_run(query[0], key[0], value[0], chunk.lengths, dropout, scaling), None
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            part[0].transpose(0, 1).contiguous(),
            chunk.offsets,
            min_seqlen=chunk.lengths[0],
            max_seqlen=chunk.lengths[-1],
        ).transpose(1, 2)
        for part in (query, key, value)
    )
    attended = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return attended.transpose(1, 2).values()[None], None


def _run_by_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """(1, T, H, d) from (H, T, d)."""
    if torch.is_autocast_enabled("cpu"):  # rotary positions leave query and key in fp32
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    attended, start = [], 0
    for length, texts in groupby(lengths):
        stop = start + length * len(list(texts))
        q, k, v = (part[:, start:stop].unflatten(1, (-1, length)).transpose(0, 1) for part in (query, key, value))
        if dropout or q.dtype == torch.bfloat16:
            result = _Attention.apply(q, k, v, dropout, scale or query.shape[-1] ** -0.5)
        else:
            result = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        attended.append(result.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(attended)[None]


class _Attention(torch.autograd.Function):
    """Softmax attention with dropout of the probabilities; query, key and value (n, H, L, d)."""

    @staticmethod
    def forward(ctx, query, key, value, dropout, scale):
        with torch.autocast("cpu", enabled=False):
            scores = torch.matmul(query * scale, key.transpose(2, 3))
            shares = scores.softmax(dim=3)  # computed in fp32 whatever the type
            kept = keep_mask(shares.shape, dropout) if dropout else None
            ctx.save_for_backward(query, key, value, shares, kept)
            ctx.dropout, ctx.scale = dropout, scale
            return torch.matmul(_kept(shares, kept, dropout), value)

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, shares, kept = ctx.saved_tensors
        of_value = torch.matmul(_kept(shares, kept, ctx.dropout).transpose(2, 3), gradient)
        of_shares = _kept(torch.matmul(gradient, value.transpose(2, 3)), kept, ctx.dropout)
        weighted = of_shares.mul_(shares)
        of_scores = (weighted - shares * weighted.sum(dim=3, keepdim=True)).mul_(ctx.scale)
        return torch.matmul(of_scores, key), torch.matmul(of_scores.transpose(2, 3), query), of_value, None, None


def _kept(values: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return values if kept is None else apply_mask(values, kept, dropout)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
