"""Attention over packed texts on CPUs, whose backward pass computes the probabilities again.

Texts of equal length are attended to together. Torch's fused kernel computes them, with two exceptions, which are
computed here, because this is faster:

* with dropout, torch leaves the fused kernel, computes in fp32 and keeps four values for each probability;
* in bf16, the fused kernel is slower, and its backward pass takes two to five times as long. With AMX its forward
  pass is the faster one, so evaluation uses the fused kernel there.

Both ways keep query, key, value and the result, as FlashAttention does (Dao et al. 2022), and a bit for each
probability that dropout may drop. The probabilities themselves are computed for some texts at a time, in the
processor's cache.

Shapes: H heads, T tokens in the token batch, n texts of L tokens with the same length, d dimensions of a head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch

from rqa_ray.retriever.cpu_threads import in_threads
from rqa_ray.retriever.dropout import factor_of_kept, keep_mask, new_seed, pack_mask, unpack_mask

# Sums of powers of two in bf16 that are still exact enough. The inverse of a sum times a gradient is in range too.
SMALLEST_SUM, LARGEST_SUM = 2.0**-60, 2.0**60
LOG2_E = math.log2(math.e)
# Probabilities that a thread computes at a time, at least those of a text: several tensors of them fit in the cache of
# a core.
PROBABILITIES_OF_A_THREAD = 2**17


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


@cache
def has_amx() -> bool:
    """Returns whether the CPU multiplies bf16 matrices with AMX; False where torch is too old to tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    reach: Reach,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Returns (T, H, d) from query, key and value (T, H, d); every text attends to itself only.

    `lengths` are those of the texts, one after the other; equal ones have to be neighbors.
    """
    fused = query.dtype != torch.bfloat16 or (torch.is_inference_mode_enabled() and has_amx())
    kind = _Fused if fused and not dropout else _Attention
    return kind.apply(query, key, value, lengths, reach, dropout, scale)


@dataclass(frozen=True)
class _Run:
    """Neighboring texts of equal length."""

    first: int  # the place of their first token
    texts: int
    length: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the run's part (n, H, L, d) of a tensor (T, H, d)."""
        part = tensor[self.first : self.first + self.texts * self.length]
        return part.unflatten(0, (self.texts, self.length)).transpose(1, 2)

    def parts(self, heads: int) -> Iterator["_Run"]:
        """Yields parts of the run that the cache has room for, at least a text each."""
        most = max(PROBABILITIES_OF_A_THREAD // (heads * self.length**2), 1)
        for done in range(0, self.texts, most):
            texts = min(most, self.texts - done)
            yield _Run(self.first + done * self.length, texts, self.length)


def _runs(lengths: list[int]) -> Iterator[_Run]:
    first = 0
    for length, texts in groupby(lengths):
        run = _Run(first, len(list(texts)), length)
        first += run.texts * length
        yield run


class _Fused(torch.autograd.Function):
    """Attention by torch's fused kernel; SDPA would keep the result twice, in two layouts."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, reach, dropout, scale):
        attended, kept = torch.empty_like(query, memory_format=torch.contiguous_format), []
        for run in _runs(lengths):
            parts = (run.of(part) for part in (query, key, value))
            result, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, **_options(run, reach, scale, query.dtype)
            )
            run.of(attended).copy_(result)
            kept.append(sums)
        ctx.save_for_backward(query, key, value, attended, *kept)
        ctx.lengths, ctx.reach, ctx.scale = lengths, reach, scale
        return attended

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, attended, *kept = ctx.saved_tensors
        gradients = [torch.empty_like(attended) for _ in range(3)]
        for run, sums in zip(_runs(ctx.lengths), kept, strict=True):
            options = _options(run, ctx.reach, ctx.scale, gradient.dtype)
            parts = [run.of(part) for part in (gradient, query, key, value, attended)]
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *parts, sums, 0.0, options.pop("is_causal"), **options
            )
            for target, part in zip(gradients, found, strict=True):
                run.of(target).copy_(part)
        return *gradients, None, None, None, None


def _options(run: _Run, reach: Reach, scale: float, dtype: torch.dtype) -> dict[str, Any]:
    is_causal = reach.causal and reach.farthest(run.length) is None  # is faster than a mask
    allowed = None if is_causal else reach.allowed(run.length)
    mask = None if allowed is None else torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    return {"is_causal": is_causal, "attn_mask": mask, "scale": scale}


class _Attention(torch.autograd.Function):
    """Softmax attention with dropout of the probabilities, and its gradient.

    Passes over the (n, H, L, L) tensors are what takes time. So the factors of a row are multiplied into the
    (n, H, L, d) tensors, and the backward pass takes its sums over rows from the output, as FlashAttention does.
    """

    @staticmethod
    def forward(ctx, query, key, value, lengths, reach, dropout, scale):
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        parts = [part for run in _runs(lengths) for part in run.parts(query.shape[1])]
        seed = new_seed() if dropout else None

        def attend_in(number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            part = parts[number]
            q, k, v = (part.of(whole) for whole in (query, key, value))
            weights, factors = _softmax(q, k, reach, scale)
            mask = None if seed is None else keep_mask(weights.shape, dropout, (seed, number))
            product = torch.matmul(_kept(weights, mask), v.contiguous())
            torch.mul(product, factors * factor_of_kept(dropout), out=part.of(attended))
            return factors, None if mask is None else pack_mask(mask)

        with torch.autocast("cpu", enabled=False):
            kept = [tensor for of_part in in_threads(attend_in, range(len(parts))) for tensor in of_part]
        ctx.save_for_backward(query, key, value, attended, *kept)
        ctx.parts, ctx.reach, ctx.dropout, ctx.scale = parts, reach, dropout, scale
        return attended

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, attended, *kept = ctx.saved_tensors
        gradients = of_query, of_key, of_value = [torch.empty_like(attended) for _ in range(3)]

        def differentiate(of_part: tuple[_Run, torch.Tensor, torch.Tensor | None]) -> None:
            part, factors, bits = of_part
            q, k, v = (part.of(whole).contiguous() for whole in (query, key, value))
            weights, _ = _softmax(q, k, ctx.reach, ctx.scale, factors)
            towards = _times(part.of(gradient), factors * factor_of_kept(ctx.dropout))
            mean = (towards * part.of(attended)).sum(dim=3, keepdim=True).div_(factor_of_kept(ctx.dropout))
            of_scores = torch.matmul(towards, v.transpose(2, 3))
            shown = weights
            if bits is not None:
                mask = unpack_mask(bits, weights.shape).to(weights.dtype)
                of_scores.mul_(mask)
                shown = mask.mul_(weights)
            part.of(of_value).copy_(torch.matmul(shown.transpose(2, 3), towards))
            of_scores.sub_(mean).mul_(weights)
            torch.mul(torch.matmul(of_scores, k), ctx.scale, out=part.of(of_query))
            torch.mul(torch.matmul(of_scores.transpose(2, 3), q), ctx.scale, out=part.of(of_key))

        with torch.autocast("cpu", enabled=False):
            in_threads(differentiate, [*zip(ctx.parts, kept[::2], kept[1::2], strict=True)])
        return *gradients, None, None, None, None


def _softmax(
    query: torch.Tensor, key: torch.Tensor, reach: Reach, scale: float, factors: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weights (n, H, L, L), and the factors (n, H, L, 1) that make them the shares of a softmax.

    Computes the same weights again if it gets their factors.
    """
    key = key.contiguous().transpose(2, 3)
    if query.dtype == torch.bfloat16 and (factors is None or factors.ndim):
        # Softmax subtracts each row's maximum to keep the powers in range, and torch takes longer for the maximum than
        # for the powers. The sums tell whether the powers were in range without it.
        weights = reach.cut_(torch.matmul(_times(query, scale * LOG2_E), key).exp2_())
        if factors is not None:
            return weights, factors
        sums = weights.sum(dim=3, keepdim=True)
        least, most = sums.aminmax()
        if least > SMALLEST_SUM and most < LARGEST_SUM:
            return weights, sums.reciprocal_()
    scores, allowed = torch.matmul(_times(query, scale), key), reach.allowed(query.shape[2])
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    # torch computes the softmax in fp32 for every type
    return torch.softmax(scores, dim=3, out=scores), scores.new_ones(())


def _times(values: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """Returns a product, laid out as matrix products need it."""
    return torch.mul(values, factor, out=torch.empty(values.shape, dtype=values.dtype))


def _kept(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else mask.to(values.dtype).mul_(values)
