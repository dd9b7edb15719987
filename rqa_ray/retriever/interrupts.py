"""Giving up the work in hand, on all ranks together, so that a stop need not wait for a long step or evaluation.

A rank looks for a stop between token batches. It may not just leave: the others would wait for it in the next
collective. So each part of the work (encoding a batch, its backward pass, a share of the corpus) ends with one
agreement, to which a rank that saw the stop goes at once. Which parts are watched has to be the same on all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rqa_ray.retriever import distributed


class Interrupted(Exception):
    """A stop was asked for, and all ranks have given up the work in hand."""


class _Seen(Exception):
    """This rank has seen the stop; caught where the part ends."""


class Interrupts:
    """Looks for a stop while `watching`; else costs nothing."""

    def __init__(self) -> None:
        self.is_asked: Callable[[], bool] = lambda: False
        self.watching = False
        self.worked = 0.0  # seconds in parts, the waiting for other ranks left out

    def look(self) -> None:
        """Between token batches: leaves the part."""
        if self.watching and self.is_asked():
            raise _Seen

    @contextmanager
    def part(self, device: torch.device | str = "cpu") -> Iterator[None]:
        """A part of the work, between two collectives.

        Raises:
            Interrupted: on all ranks, where any of them has seen a stop.
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
        """Work that is watched, or that the ranks have agreed to finish."""
        before, self.watching = self.watching, watching
        try:
            yield
        finally:
            self.watching = before

    def before_backward(self, gradient: torch.Tensor, index: int) -> None:
        """As a hook on the embeddings of token batch `index`: autograd takes the last first, and DDP reduces with 0.

        Raises:
            Interrupted: as `part`.
        """
        if self.watching:
            seen = self.is_asked()
            if (seen or index == 0) and distributed.any_rank(seen, gradient.device):
                raise Interrupted
