"""Dropout for CPUs, with masks that cost a tenth of torch's: `bernoulli_` takes a fifth of a training step on CPUs.

A mask compares 16 random bits for each element with a threshold. So the probability of dropout is exact to 1/131,072.
The kept values are divided by the share that is really kept.

The random bits come from numpy's SFC64 generator, which is seeded from torch's generator at every call. Code that
restores torch's random state (the seed of a token batch, gradient checkpointing) therefore gets the same mask again.
A mask that several threads make has a seed for each part, so it does not depend on the threads.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

ALL_BITS = 2**64 - 1


def new_seed() -> int:
    """Returns a random seed of a mask, from torch's generator."""
    return int(torch.randint(2**62, ()))


def keep_mask(shape: torch.Size, probability: float, seed: int | tuple[int, int] | None = None) -> torch.Tensor:
    """Returns a random uint8 mask of a shape: 0 with the probability of dropout, else 1.

    `seed` is a seed, or the seed of a larger mask and the number of a part of this mask; a new seed by default.
    """
    generator = np.random.Generator(np.random.SFC64(new_seed() if seed is None else seed))
    # `random_raw` gives the same bits, but holds Python's lock.
    bits = generator.integers(0, ALL_BITS, -(-shape.numel() // 4), np.uint64, endpoint=True).view(np.uint16)
    return torch.from_numpy((bits[: shape.numel()] >= _threshold(probability)).view(np.uint8)).view(shape)


def pack_mask(kept: torch.Tensor) -> torch.Tensor:
    """Returns a mask with one bit for each of its elements."""
    return torch.from_numpy(np.packbits(kept.numpy()))


def unpack_mask(bits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the mask of a shape that `pack_mask` has packed."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel())).view(shape)


def apply_mask(values: torch.Tensor, kept: torch.Tensor, probability: float) -> torch.Tensor:
    """Returns the values that the mask keeps, scaled so that their expectation is unchanged.

    The gradient is masked alike.
    """
    return kept.to(values.dtype).mul_(values).mul_(factor_of_kept(probability))


def factor_of_kept(probability: float) -> float:
    """Returns the factor of the values that a mask keeps, so that their expectation is unchanged."""
    return 2**16 / (2**16 - _threshold(probability))


def _threshold(probability: float) -> int:
    return round(probability * 2**16)


class FastDropout(nn.Dropout):
    """`nn.Dropout` with a faster mask on CPUs; on other devices it is `nn.Dropout`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return _Dropout.apply(input, self.p)


class _Dropout(torch.autograd.Function):
    """Dropout with `keep_mask`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, probability: float) -> torch.Tensor:
        kept = keep_mask(values.shape, probability)
        ctx.save_for_backward(pack_mask(kept))
        ctx.probability = probability
        return apply_mask(values, kept, probability)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        kept = unpack_mask(ctx.saved_tensors[0], gradient.shape)
        return apply_mask(gradient, kept, ctx.probability), None


def replace_dropout(module: nn.Module) -> None:
    """Replaces every `nn.Dropout` in a module by a `FastDropout`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, FastDropout(child.p))
        else:
            replace_dropout(child)
