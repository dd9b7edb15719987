"""Says what a trained model would find together with BM25, and saves the weight with which it finds most on eval.

An evaluation ranks the best passages of the model, and scores the best passages of BM25 (`hybrid_scores.py`). Both
lists together are the candidates of the hybrid. A passage of neither list scores less than the last passage of each
list, so it can only reach the last places of the hybrid. With each of the 21 weights, nDCG@10 and recall@4 equal those
of `bm25.Hybrid` on Faire and on the built-in data; on MedQuAD, nDCG@10 differs by 5e-6, where scores are nearly equal.

Shapes: Q questions of a split, P passages of the corpus, K candidates of one list.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rqa_ray.corpus.bm25 import HYBRID_FILE, SMALLEST_DEVIATION, Bm25, z_scores
from rqa_ray.corpus.topk import question_slices
from rqa_ray.evaluation.confidence import paired_difference
from rqa_ray.evaluation.evaluator import TOP_K
from rqa_ray.evaluation.hybrid_weight import WEIGHT_METRIC, WEIGHTS, best_weight
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.places import write_json

UNKNOWN = f"recall{TOP_K}"  # a metric of places that the candidates of both lists may not fill as all passages would
MOST_PASSAGES = 200_000  # BM25 holds the corpus in the memory of one process


def why_not(num_passages: int) -> str:
    """Returns why no hybrid is measured; an empty text if one is."""
    if not importlib.util.find_spec("bm25s"):
        return 'it needs bm25s: pip install -e ".[bm25]"'
    return f"the corpus has more than {MOST_PASSAGES:,} passages" if num_passages > MOST_PASSAGES else ""


def found_by_bm25(splits: Mapping[str, AskedQuestions], bm25: Bm25) -> dict[str, np.ndarray]:
    """Returns the positions (Q, K) of BM25's best passages by split."""
    return {split: bm25.rank(asked.questions, TOP_K)[1] for split, asked in splits.items()}


def rank(
    bm25: Bm25, questions: Sequence[str], found: SplitResult, weights: Sequence[float]
) -> dict[float, np.ndarray]:
    """Returns the positions (Q, K) of the hybrid by the weight of the model, best first."""
    of_bm25, k = found.of_bm25, min(TOP_K, bm25.num_passages)
    assert of_bm25
    positions = np.concatenate([found.positions, of_bm25.positions], axis=1)
    scores = np.concatenate([found.scores, of_bm25.scores], axis=1).astype(np.float64)
    dense = (scores - of_bm25.mean[:, None]) / np.maximum(of_bm25.deviation, SMALLEST_DEVIATION)[:, None]
    lexical = np.empty_like(dense)
    for part in question_slices(len(questions), bm25.num_passages):
        lexical[part] = np.take_along_axis(z_scores(bm25.scores(questions[part])).numpy(), positions[part], axis=1)
    order = positions.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(positions, order, axis=1)
    again = np.zeros(positions.shape, bool)  # candidates of both lists, the second time
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    ranked = {}
    for weight in weights:
        fused = np.where(again, -np.inf, weight * dense + (1 - weight) * lexical)
        best = np.lexsort([positions, -fused], axis=1)[:, :k]
        ranked[weight] = np.take_along_axis(positions, best, axis=1)
    return ranked


def chosen_weight(bm25: Bm25, asked: AskedQuestions, found: SplitResult, passage_ids: np.ndarray) -> float:
    """Returns the weight of the model with the best nDCG@10 on these questions; passage_ids (P,) are the corpus's."""
    ranked = rank(bm25, asked.questions, found, WEIGHTS)
    return best_weight({weight: passage_ids[positions] for weight, positions in ranked.items()}, asked.gold_ids).weight


@dataclass(frozen=True)
class HybridReport:
    """What a model finds alone, and together with BM25."""

    weight: float  # weight of the model's z-scores, chosen on eval; BM25's have the rest
    alone: dict[str, dict[str, float]]  # metrics by split and name
    together: dict[str, dict[str, float]]
    p_value: float | None  # of the difference in nDCG@10 of test; None without test questions

    @classmethod
    def of(cls, splits: Mapping[str, AskedQuestions], ids: np.ndarray, found: Evaluation, bm25: Bm25) -> HybridReport:
        """Chooses the weight on eval, and measures this weight on all splits; ids (P,) are those of the corpus."""
        weight = chosen_weight(bm25, splits["eval"], found.splits["eval"], ids)
        alone, together, p_value = {}, {}, None
        for split, asked in splits.items():
            ranked = rank(bm25, asked.questions, found.splits[split], [weight])[weight]
            before = question_metrics(ids[found.splits[split].positions], asked.gold_ids)
            after = question_metrics(ids[ranked], asked.gold_ids)
            alone[split] = {name: float(values.mean()) for name, values in before.items()}
            together[split] = {name: float(values.mean()) for name, values in after.items() if UNKNOWN not in name}
            if split == "test":
                clusters = asked.clusters.labels
                p_value = paired_difference(before[WEIGHT_METRIC], after[WEIGHT_METRIC], clusters).p_value
        return cls(weight, alone, together, p_value)

    def save(self, folder: Path) -> None:
        """Writes the file that `bm25.Weight` reads."""
        splits = {split: {"alone": self.alone[split], "hybrid": self.together[split]} for split in self.alone}
        write_json(folder / HYBRID_FILE, {"weight": self.weight, **splits})

    def describe(self) -> str:
        """Returns a line for the user."""
        if self.weight == 1:
            return "with BM25 (hybrid): eval finds no more than the model alone, so the stored weight is 1"
        parts = []
        for split, alone in self.alone.items():
            names = [(label, LABELS[label]) for label in reversed(HEADLINES)]
            changes = [f"{label} {alone[name]:.3f} -> {self.together[split][name]:.3f}" for label, name in names]
            changes[0] += f" (p = {self.p_value:.2g})" if split == "test" else ""
            parts.append(f"{split} {', '.join(changes)}")
        return f"with BM25 (hybrid, weight {self.weight:g} of the model, chosen on eval): {'; '.join(parts)}"


def report(
    splits: Mapping[str, AskedQuestions],
    ids: np.ndarray,
    found: Evaluation,
    folder: Path,
    index: Callable[[], Bm25],
) -> str:
    """Measures the hybrid and saves its weight in a folder; returns a line for the user.

    ids (P,) are those of the corpus. `index` returns BM25's index of the corpus, if the hybrid is measured.
    """
    reason = "" if found.splits["eval"].of_bm25 else why_not(len(ids)) or "its evaluation is of an earlier version"
    if reason:
        return f"with BM25 (hybrid): not measured; {reason}"
    measured = HybridReport.of(splits, ids, found, index())
    measured.save(folder)
    return measured.describe()
