"""Lets all ranks give up their work together after a stop, so that a stop does not wait for a long step or evaluation.

A rank looks for a stop between token batches. The rank cannot simply leave, because the other ranks would wait for it
in the next collective. So each part of the work (encoding a batch, its backward pass, a share of the corpus) ends with
one agreement of all ranks. A rank that has seen the stop goes to this agreement at once. All ranks have to watch the
same parts.

Ranks that are `in_step`, because each forward pass is one of all ranks, agree at each look instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rqa_ray.retriever import distributed


class Interrupted(Exception):
    """Raised on all ranks after a stop, when they have given up their work."""


class _Seen(Exception):
    """Raised where this rank sees the stop; `Interrupts.part` catches it."""


class Interrupts:
    """Looks for a stop while `watching` is true; costs nothing while it is false."""

    def __init__(self) -> None:
        self.is_asked: Callable[[], bool] = lambda: False
        self.watching = False
        self.in_step: torch.device | None = None  # of ranks that make all forward passes together
        self.worked = 0.0  # seconds of work in all parts, without the time spent waiting for other ranks

    def look(self) -> None:
        """Leaves the part if a stop was asked for; called between token batches."""
        if self.watching:
            seen = self.is_asked()
            if distributed.any_rank(seen, self.in_step) if self.in_step else seen:
                raise _Seen

    @contextmanager
    def part(self, device: torch.device | str = "cpu") -> Iterator[None]:
        """Wraps a part of the work between two collectives.

        Raises:
            Interrupted: on all ranks, if any rank has seen a stop.
        """
        seen, started = False, time.perf_counter()
        try:
            yield
        except _Seen:
            seen = True
        self.worked += time.perf_counter() - started
        if self.watching and distributed.any_rank(seen, device):
            raise Interrupted

    @contextmanager
    def watch(self, watching: bool) -> Iterator[None]:
        """Sets `watching` for a block; without it, the ranks finish the block after a stop."""
        before, self.watching = self.watching, watching
        try:
            yield
        finally:
            self.watching = before

    def before_backward(self, gradient: torch.Tensor, index: int) -> None:
        """Looks for a stop before the backward pass of token batch `index`; a hook on its embeddings.

        Autograd takes the last token batch first. DDP averages the gradients in the backward pass of token batch 0, so
        all ranks agree before it. Ranks that are `in_step` finish their backward pass.

        Raises:
            Interrupted: as in `part`.
        """
        if self.watching and not self.in_step:
            seen = self.is_asked()
            if (seen or index == 0) and distributed.any_rank(seen, gradient.device):
                raise Interrupted
