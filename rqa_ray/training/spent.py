"""Measures where the time of a run goes; a checkpoint keeps the sums, so a run that is resumed goes on with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import TrainerCallback


@dataclass
class Spent:
    """Seconds by phase, and the tokens of the training batches.

    The loop of rank 0 measures `waiting` to `saving`. The driver measures the other phases, of the last start alone.
    """

    reading: float = 0.0  # the files are read and tokenized
    starting: float = 0.0  # workers start, and load the model and the data
    waiting: float = 0.0  # for batches
    steps: float = 0.0
    mining: float = 0.0  # without the encoding of the corpus, where an evaluation needs the same encoding
    evaluating: float = 0.0
    saving: float = 0.0  # checkpoints on the worker's disk; uploads go on beside training
    finishing: float = 0.0  # the final model is chosen and written
    tokens: int = 0  # of rank 0 times the ranks, which have nearly equal shares

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time that the block takes to a phase."""
        start = time.perf_counter()
        yield
        setattr(self, phase, getattr(self, phase) + time.perf_counter() - start)


class StepClock(TrainerCallback):
    """Measures the time of optimizer steps, and the share of time in which steps waited for their batches."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent
        self._began = 0.0
        self._logged = (0.0, 0.0)  # waiting and steps when the share was last asked for

    def on_train_begin(self, args, state, control, **kwargs):
        self._logged = self.spent.waiting, self.spent.steps  # a resumed run goes on with the times of the run before

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.spent.steps += time.perf_counter() - self._began

    def wait_share(self) -> float:
        """Returns the share of waiting (fraction) since this was last asked for."""
        now = self.spent.waiting, self.spent.steps
        waiting, steps = (total - before for total, before in zip(now, self._logged, strict=True))
        self._logged = now
        return waiting / max(waiting + steps, 1e-9)
