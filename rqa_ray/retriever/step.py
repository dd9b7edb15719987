"""Computes the forward and backward pass of one batch: at once if its graph fits in memory, else by gradient caching.

Gradient caching (Gao et al. 2021, GradCache) gives the same gradient with the memory of fewer token batches. A share
of the token batches is cached; the graph of the rest is kept.

1. Encode the cached token batches without a graph, and the rest with one.
2. Compute the loss of the embeddings, and its gradient with respect to the embeddings (the cache).
3. Push its part of the cache through the kept graph. Then encode each cached token batch again, with the same dropout
   masks, and push its part of the cache through it.

All ways call the same loss, and all average gradients over ranks once.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from rqa_ray.retriever.interrupts import Interrupts
from rqa_ray.retriever.token_batches import TokenBatch


def forward_backward(
    model: nn.Module,
    token_batches: Sequence[TokenBatch],
    seeds: Sequence[int],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    gradient_cache: float,
    interrupts: Interrupts | None = None,
) -> torch.Tensor:
    """Adds the gradient of the loss to the parameters and returns the loss, detached.

    Args:
        model: the encoder, wrapped by DDP or not; every forward pass goes through it.
        seeds: one for each token batch, for its dropout masks.
        loss_of: maps embeddings (rows, D) to a scalar; may communicate, once a batch.
        backward: the Trainer's backward, which scales the loss in fp16.
        gradient_cache: the share of the tokens that is cached, from 0 to 1, the same on all ranks. The first token
            batches are cached: their texts are the longest, which need the most memory for a token.
        interrupts: the encoder's `interrupts`.

    Raises:
        Interrupted: on all ranks; the gradients must not be used.
    """
    interrupts = interrupts or Interrupts()
    device = token_batches[0].input_ids.device
    if not gradient_cache:
        with interrupts.part(device):
            embeddings = model(token_batches, seeds, interrupts.before_backward if interrupts.watching else None)
        loss = loss_of(embeddings)
        backward(loss)
        return loss.detach()

    # (1) encode
    num_cached = _num_cached(token_batches, gradient_cache)
    kept = None
    with interrupts.part(device):
        with torch.no_grad():
            parts = [model([token_batches[place]], [seeds[place]]) for place in range(num_cached)]
        if num_cached < len(token_batches):
            with _no_sync(model):
                kept = model(token_batches[num_cached:], seeds[num_cached:], lambda *_, **__: interrupts.look())
            parts.append(kept)
    embeddings = torch.cat(parts).detach().requires_grad_()

    # (2) loss and the cached gradient of the embeddings
    loss = loss_of(embeddings)
    backward(loss)
    assert embeddings.grad is not None
    cache = embeddings.grad.split([len(part) for part in parts])

    # (3) the kept graph, then token batch by token batch; the last one synchronizes, unless the caller accumulates
    # gradients
    with interrupts.part(device), _no_sync(model):
        if kept is not None:
            kept.backward(cache[-1])
        for place in range(num_cached - 1):
            model([token_batches[place]], [seeds[place]]).backward(cache[place])
    last = num_cached - 1
    with interrupts.watch(False):
        model([token_batches[last]], [seeds[last]]).backward(cache[last])
    return loss.detach()


def _num_cached(token_batches: Sequence[TokenBatch], share: float) -> int:
    """Returns how many token batches are cached: at least one, because one has to synchronize on every rank."""
    ends = np.cumsum([token_batch.num_tokens for token_batch in token_batches])
    return min(int(np.searchsorted(ends, share * ends[-1])) + 1, len(ends))


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager:
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if no_sync else contextlib.nullcontext()
