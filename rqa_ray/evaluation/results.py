"""What an evaluation found: typed, saved beside a checkpoint, loaded again.

Q questions of a split, K retrieved passages of each.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

EVALUATION, BEFORE = "evaluation", "before"  # names of what is saved: of a checkpoint's own step, and of step 0


@dataclass
class SplitResult:
    """What was found for the questions of one split."""

    metrics: dict[str, float]  # by name without the split, such as "loss"
    scores: np.ndarray  # (Q, K) fp32
    positions: np.ndarray  # (Q, K) places in the corpus, best first


@dataclass
class Evaluation:
    """What was found of one model, by split: `eval` and maybe `test`; no split where it was not evaluated."""

    splits: dict[str, SplitResult] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.splits)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all splits by full name, such as "eval_loss"."""
        return flat_metrics({split: result.metrics for split, result in self.splits.items()})

    def metrics_of(self, split: str) -> dict[str, float]:
        """The metrics of one split by full name; none where it was not evaluated."""
        return flat_metrics({split: self.splits[split].metrics} if split in self.splits else {})

    def files(self, name: str) -> dict[str, bytes]:
        """The content of the files that `load` reads, the metrics last: where they are, all of it is."""
        rankings = io.BytesIO()
        arrays: dict[str, np.ndarray] = {}
        for split, result in self.splits.items():
            arrays |= {f"{split}_scores": result.scores, f"{split}_positions": result.positions}
        np.savez(rankings, **arrays)  # type: ignore[arg-type]
        metrics = {split: result.metrics for split, result in self.splits.items()}
        return {f"{name}.npz": rankings.getvalue(), metrics_file(name): json.dumps(metrics, indent=2).encode()}

    @classmethod
    def load(cls, name: str, open_file: Callable[[str], BinaryIO]) -> Evaluation:
        """What `files` returned; `open_file` opens one of them by its name."""
        with open_file(metrics_file(name)) as file:
            metrics = json.loads(file.read())
        with open_file(f"{name}.npz") as file, np.load(io.BytesIO(file.read())) as arrays:
            return cls(
                {
                    split: SplitResult(values, arrays[f"{split}_scores"], arrays[f"{split}_positions"])
                    for split, values in metrics.items()
                }
            )


def metrics_file(name: str) -> str:
    """The file of the metrics of a saved evaluation: JSON, by split and name."""
    return f"{name}.json"


def flat_metrics(by_split: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics by full name, such as "eval_loss"."""
    return {f"{split}_{name}": value for split, metrics in by_split.items() for name, value in metrics.items()}
