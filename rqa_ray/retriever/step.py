"""Computes the forward and backward pass of one batch: at once if its graph fits in memory, else by gradient caching.

Gradient caching (Gao et al. 2021, GradCache) needs the memory of one token batch and gives the same gradient:

1. Encode all token batches without a graph.
2. Compute the loss of the embeddings, and its gradient with respect to the embeddings (the cache).
3. Encode each token batch again, with the same dropout masks, and push its part of the cache through it.

Both ways call the same loss, and both average gradients over ranks once.
"""

import contextlib
from collections.abc import Callable, Sequence

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
    gradient_cache: bool,
    interrupts: Interrupts | None = None,
) -> torch.Tensor:
    """Adds the gradient of the loss to the parameters and returns the loss, detached.

    Args:
        model: the encoder, wrapped by DDP or not; every forward pass goes through it.
        seeds: one for each token batch, for its dropout masks.
        loss_of: maps embeddings (rows, D) to a scalar; may communicate, once a batch.
        backward: the Trainer's backward, which scales the loss in fp16.
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

    # (1) encode without a graph
    with torch.no_grad(), interrupts.part(device):
        parts = [model([token_batch], [seed]) for token_batch, seed in zip(token_batches, seeds, strict=True)]
    embeddings = torch.cat(parts).requires_grad_()

    # (2) loss and the cached gradient of the embeddings
    loss = loss_of(embeddings)
    backward(loss)
    assert embeddings.grad is not None
    cache = embeddings.grad.split([len(part) for part in parts])

    # (3) encode again, token batch by token batch; the last one synchronizes, unless the caller accumulates gradients
    *earlier, last = zip(token_batches, seeds, cache, strict=True)
    with interrupts.part(device), _no_sync(model):
        for token_batch, seed, gradient in earlier:
            model([token_batch], [seed]).backward(gradient)
    token_batch, seed, gradient = last
    with interrupts.watch(False):
        model([token_batch], [seed]).backward(gradient)
    return loss.detach()


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager:
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if no_sync else contextlib.nullcontext()
