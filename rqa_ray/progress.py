"""Draws the progress line of a run from small records that rank 0 sends."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from rqa_ray.texts import duration

SECONDS_BETWEEN_PLAIN_LINES = 30.0


@dataclass
class Progress:
    """How far a run is. `done` of `total` are optimizer steps, or texts during an evaluation."""

    phase: str = "starting workers"
    done: int = 0
    total: int = 0
    loss: float | None = None
    quality: str = ""  # metric at the last evaluation
    questions_per_step: int = 0
    step: int = 0


@dataclass
class ProgressLine:
    """Draws one line on a terminal or in a notebook; elsewhere prints a plain line from time to time."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _phase: str = ""
    _start: tuple[float, int] = (0.0, 0)
    _printed: float = float("-inf")
    _last: str = ""
    _width: int = 0

    @property
    def _redraws(self) -> bool:
        """Whether a carriage return starts the line again, which it does on a terminal and in a notebook."""
        return self.stream.isatty() or type(self.stream).__module__.startswith("ipykernel")

    def draw(self, progress: Progress) -> None:
        """Shows a record."""
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._start = progress.phase, (now, progress.done)
        text = describe(progress, now - self._start[0], progress.done - self._start[1])
        if self._redraws:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif now - self._printed >= SECONDS_BETWEEN_PLAIN_LINES and text != self._last:
            self._printed, self._last = now, text
            self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Clears the line, so that other text can be printed."""
        if self._redraws and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0


def describe(progress: Progress, seconds: float, done: int) -> str:
    """Returns one line: `done` were finished in `seconds`."""
    parts = [progress.phase]
    if progress.total:
        parts[0] += f" {progress.done:,}/{progress.total:,}"
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.quality:
        parts.append(progress.quality)
    if done > 0 and seconds > 0:
        if progress.questions_per_step and progress.phase == "step":
            parts.append(f"{done * progress.questions_per_step / seconds:.1f} questions/s")
        parts.append(f"{duration((progress.total - progress.done) * seconds / done)} left")
    return ", ".join(parts)


def as_record(progress: Progress) -> dict[str, Any]:
    """Returns the record as plain data, for sending."""
    return vars(progress).copy()
