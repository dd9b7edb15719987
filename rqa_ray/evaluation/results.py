"""The typed result of an evaluation, which can be saved beside a checkpoint and loaded again.

Shapes: Q questions of a split, K retrieved passages per question.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import BinaryIO

import numpy as np

# names of the saved evaluations: of a checkpoint's own step, and of step 0
EVALUATION, BEFORE = "evaluation", "before"


@dataclass
class OfBm25:
    """What a hybrid with BM25 needs to know about the model's scores of the questions of one split."""

    positions: np.ndarray  # (Q, K) places in the corpus of the best passages by BM25
    scores: np.ndarray  # (Q, K) fp32, the model's scores of these passages
    mean: np.ndarray  # (Q,) mean of the model's scores over the whole corpus
    deviation: np.ndarray  # (Q,) their standard deviation


@dataclass
class SplitResult:
    """The result for the questions of one split."""

    metrics: dict[str, float]  # metrics by name without the split, such as "loss"
    scores: np.ndarray  # (Q, K) fp32
    positions: np.ndarray  # (Q, K) places in the corpus, best first
    of_bm25: OfBm25 | None = None  # None if the evaluation was told nothing about BM25
    asked: str = ""  # `rows.fingerprint` of the questions and the corpus


@dataclass
class Evaluation:
    """The result of evaluating one model, by split: `eval` and maybe `test`; empty if the model was not evaluated."""

    splits: dict[str, SplitResult] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.splits)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all splits by full name, such as "eval_loss"."""
        return flat_metrics({split: result.metrics for split, result in self.splits.items()})

    def metrics_of(self, split: str) -> dict[str, float]:
        """Returns the metrics of one split by full name; empty if the split was not evaluated."""
        return flat_metrics({split: self.splits[split].metrics} if split in self.splits else {})

    def of(self, asked: Mapping[str, str]) -> Evaluation | None:
        """Returns the results of those splits that have these fingerprints; None if eval is not among them."""
        known = {split: result for split, result in self.splits.items() if result.asked == asked.get(split)}
        return Evaluation(known) if "eval" in known else None

    def files(self, name: str) -> dict[str, bytes]:
        """Returns the contents of the files that `load` reads.

        The metrics come last, so where they exist, all files do.
        """
        rankings = io.BytesIO()
        arrays: dict[str, np.ndarray] = {}
        for split, result in self.splits.items():
            arrays |= {f"{split}_scores": result.scores, f"{split}_positions": result.positions}
            arrays[f"{split}_asked"] = np.array(result.asked)
            of_bm25 = vars(result.of_bm25) if result.of_bm25 else {}
            arrays |= {f"{split}_bm25_{name}": values for name, values in of_bm25.items()}
        np.savez(rankings, **arrays)  # type: ignore[arg-type]
        metrics = {split: result.metrics for split, result in self.splits.items()}
        return {f"{name}.npz": rankings.getvalue(), metrics_file(name): json.dumps(metrics, indent=2).encode()}

    @classmethod
    def load(cls, name: str, open_file: Callable[[str], BinaryIO]) -> Evaluation:
        """Reads what `files` returned; `open_file` opens one of the files by its name."""
        with open_file(metrics_file(name)) as file:
            metrics = json.loads(file.read())
        with open_file(f"{name}.npz") as file, np.load(io.BytesIO(file.read())) as arrays:
            found = cls()
            for split, values in metrics.items():
                names = [f"{split}_bm25_{item.name}" for item in fields(OfBm25)]
                of_bm25 = OfBm25(*(arrays[name] for name in names)) if names[0] in arrays else None
                parts = arrays[f"{split}_scores"], arrays[f"{split}_positions"]
                asked = str(arrays[f"{split}_asked"]) if f"{split}_asked" in arrays else ""  # of an earlier version
                found.splits[split] = SplitResult(values, *parts, of_bm25, asked)
            return found


def metrics_file(name: str) -> str:
    """Returns the name of the file with the metrics of a saved evaluation: JSON, by split and name."""
    return f"{name}.json"


def flat_metrics(by_split: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns metrics by full name, such as "eval_loss"."""
    return {f"{split}_{name}": value for split, metrics in by_split.items() for name, value in metrics.items()}
