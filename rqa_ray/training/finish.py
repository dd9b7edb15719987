"""Chooses the model that a run leaves: the pretrained model, a checkpoint, or a mean of their weights.

The mean of checkpoints of one run is often better than each of them (model soups, Wortsman et al. 2022). A mixture of
tuned and pretrained weights often keeps what training has forgotten (WiSE-FT, Wortsman et al. 2022; for retrievers
LM-Cocktail, Xiao et al. 2023). Both take one evaluation on the eval questions, and no training.

A candidate for which a paired test on the eval questions says that it is worse than the pretrained model is never
chosen. A mean or a mixture has to be better than the best step by such a test: the best of many candidates is often
the best by chance, because there are few eval questions. This file does not import Ray: workers, the driver and
`jobs/benchmark.py` choose with the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from rqa_ray.data.golds import GoldIds
from rqa_ray.evaluation.confidence import SIGNIFICANCE, gold_clusters, paired_difference
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, greater_is_better, question_metrics, short_name
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.retriever import distributed
from rqa_ray.training.candidate import BASE, Candidate, Weights

SHARES = (0.3, 0.5, 0.7, 0.85)  # of the tuned weights in a mixture with the pretrained ones
MOST_STEPS = 3  # checkpoints among the candidates
TIE_BREAKER = f"eval_{LABELS['nDCG@10']}"
WORST = -1e20


@dataclass(frozen=True)
class EvalQuestions:
    """The eval questions, as far as their rankings are judged."""

    gold_ids: GoldIds
    passage_ids: np.ndarray  # (P,) of the corpus, to which the positions of a ranking point
    clusters: np.ndarray  # (Q,) the cluster of each question, see `confidence.py`

    @classmethod
    def of(cls, evaluator: RetrievalEvaluator) -> EvalQuestions:
        """Returns the eval questions of an evaluator; questions that share a gold are a cluster."""
        golds = evaluator.questions["eval"].golds
        return cls(golds, evaluator.corpus.passage_ids, gold_clusters(golds))

    def values(self, found: Evaluation) -> dict[str, np.ndarray]:
        """Returns (Q,) values of each metric, by name without the split."""
        return question_metrics(self.passage_ids[found.splits["eval"].positions], self.gold_ids)


@dataclass(frozen=True)
class Score:
    """What a candidate has scored on the eval questions."""

    candidate: Candidate
    value: float  # of the metric that chooses
    ndcg: float
    against: str = ""  # what a paired test says against the candidate, if it says something
    unproven: str = ""  # why a mean or a mixture is no proven gain; empty if the gain is proven, or for a step

    def rank(self, metric: str) -> float:
        """Returns by what candidates are compared."""
        return score({TIE_BREAKER: self.ndcg, metric: self.value}, metric)


@dataclass(frozen=True)
class Choice:
    """The candidate that a run leaves, and why."""

    candidate: Candidate
    evaluation: Evaluation
    metric: str  # full name of the metric that chose
    scores: list[Score]  # of all candidates, the least moved first

    def describe(self) -> list[str]:
        """Returns at most three lines that say why this candidate was chosen, and which better ones were refused."""
        metric = short_name(self.metric)
        by = {one.candidate: one for one in self.scores}
        own, others = by[self.candidate], [one for one in self.scores if one.candidate != self.candidate]
        better = [one for one in others if one.rank(self.metric) > own.rank(self.metric)]
        refused = [one for one in better if one.against or one.unproven]
        equals = [one for one in others if one.value == own.value and not (one.against or one.unproven)]
        lines = []
        if self.candidate == BASE and not any(one.against for one in refused):
            lines = ["no evaluated step was better than the pretrained model: its weights are kept"]
        elif self.candidate == BASE:
            lines = ["a paired test speaks against what training has made: the pretrained weights are kept"]
        elif len(others) > 1:
            best = f"chosen from {len(self.scores)} candidates: {own.candidate}, {metric} {own.value:.3f} on eval"
            lines = [f"{best}; pretrained {by[BASE].value:.3f}"]
        if equals and self.candidate != BASE:
            top = max(equals, key=lambda one: one.rank(self.metric))
            lines.append(f"{metric} of {top.candidate} is {top.value:.3f} too; {self.why_not(top)}")
        if refused:
            top = max(refused, key=lambda one: one.rank(self.metric))
            lines.append(f"not chosen: {top.candidate}, {metric} {top.value:.3f}, but {top.against or top.unproven}")
        return lines

    def why_not(self, one: Score) -> str:
        """Returns why a candidate was not chosen; an empty text for the one that was."""
        if one.candidate == self.candidate:
            return ""
        own = next(score for score in self.scores if score.candidate == self.candidate)
        if one.against or one.unproven:
            return one.against or one.unproven
        if one.value != own.value:
            return f"{short_name(self.metric)} decides: {one.value:.4f} against {own.value:.4f}"
        if one.ndcg != own.ndcg:
            return f"nDCG@10 decides between equals: {one.ndcg:.4f} against {own.ndcg:.4f}"
        return "between equals, the candidate that has moved least from the pretrained weights is taken"


def score(metrics: Mapping[str, float], metric: str, step: int = 0) -> float:
    """Returns one number for a model's eval metrics by full name; more is better, and NaN is worst.

    The metric decides. Of equal metrics, nDCG@10 decides, and of equal nDCG@10 the earliest step. It is one number,
    because Ray ranks by it which checkpoints are kept.
    """
    value = metrics[metric] if greater_is_better(metric) else -metrics[metric]
    return (value if value == value else WORST) + 1e-7 * metrics.get(TIE_BREAKER, 0.0) - 1e-14 * step


@dataclass(frozen=True)
class Finish:
    """Which candidates a run has, and how one of them is chosen.

    `none` takes the step with the best score. `best` also asks the paired test. `merge` also makes a mean and
    mixtures, and takes the best of those that are better than the choice of `best` by a paired test, if there is one.
    """

    kind: Literal["best", "merge", "none"]
    metric: str  # full name, such as eval_retr/document_recall/recall4
    questions: EvalQuestions

    def choose(self, steps: Iterable[int], evaluate: Callable[[Candidate], Evaluation]) -> Choice:
        """Chooses among the candidates that the best stored steps give; `evaluate` ranks the eval questions with one.

        Mixtures are made of the best of the tuned candidates, so `evaluate` is called for them last. Of equal
        candidates, the one is chosen that has moved least from the pretrained weights.
        """
        steps = sorted(steps)
        merges = self.kind == "merge" and len(steps) > 0
        found = {one: evaluate(one) for one in (BASE, *(Candidate((step,)) for step in steps))}
        if merges and len(steps) > 1:
            mean = Candidate(tuple(steps))
            found[mean] = evaluate(mean)
        if merges:
            tuned = self._best({one: result for one, result in found.items() if one != BASE})
            found |= {one: evaluate(one) for one in (Candidate(tuned.steps, share) for share in SHARES)}
        values = {one: self.questions.values(result) for one, result in found.items()}
        against = {one: "" if self.kind == "none" else self._against(values[BASE], values[one]) for one in found}
        passed = {one: result for one, result in found.items() if not against[one]}
        chosen = self._best({one: result for one, result in passed.items() if not one.is_merged})
        unproven = {one: self._unproven(values, chosen, one) if one.is_merged else "" for one in found}
        chosen = self._best({one: result for one, result in passed.items() if one == chosen or not unproven[one]})
        scores = [
            Score(one, found[one].metrics[self.metric], found[one].metrics[TIE_BREAKER], against[one], unproven[one])
            for one in sorted(found, key=Candidate.movement)
        ]
        return Choice(chosen, found[chosen], self.metric, scores)

    def _best(self, found: dict[Candidate, Evaluation]) -> Candidate:
        ordered = sorted(found, key=Candidate.movement)
        return max(ordered, key=lambda one: score(found[one].metrics, self.metric))

    def _unproven(self, values: dict[Candidate, dict[str, np.ndarray]], default: Candidate, merged: Candidate) -> str:
        """Says that a merged candidate is no better than the default, or only by chance; empty if it is better."""
        name = self.metric.removeprefix("eval_")
        name = name if name in values[merged] else TIE_BREAKER.removeprefix("eval_")  # the loss, by question
        before, after = values[default][name], values[merged][name]
        if after.mean() <= before.mean():  # the test takes long
            return f"it is no better than {default}"
        gain = paired_difference(before, after, self.questions.clusters)
        if gain.p_value < SIGNIFICANCE:
            return ""
        return f"its gain over {default} is not beyond noise, p = {gain.p_value:.2g}"

    def _against(self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> str:
        """Says which metric has fallen by more than chance; empty if none has.

        The metrics are those of the summary and the one that chooses. The loss has no value by question.
        """
        names = {LABELS[label]: label for label in HEADLINES}
        names |= {name: label for label, name in LABELS.items() if self.metric == f"eval_{name}"}
        fallen = [name for name in names if after[name].mean() < before[name].mean()]  # the test takes long
        for name in fallen:
            change = paired_difference(before[name], after[name], self.questions.clusters)
            if change.p_value < SIGNIFICANCE:
                label = names[name]
                return f"{label} is {100 * change.mean:+.1f} points, p = {change.p_value:.2g}"
        return ""


def most_steps(kind: str, asked: int | None) -> int:
    """Returns how many steps are candidates, at most; `asked` is `--save_total_limit`.

    With `best`, all kept checkpoints are candidates, and steps that rank below step 0 do not matter. So the choice
    does not depend on what else is stored, which differs if the run was resumed.
    """
    return MOST_STEPS if kind == "merge" else asked or 1


def num_merged(kind: str) -> int:
    """Returns how many candidates the finish makes at most that no step of training has evaluated."""
    return 1 + len(SHARES) if kind == "merge" else 0


def checkpoints_kept(kind: str, asked: int | None) -> int:
    """Returns how many checkpoints a run keeps: `--save_total_limit`, or more if the finish needs more."""
    return max(asked or 1, MOST_STEPS + 1 if kind == "merge" else 1)  # step 0 may be one of the best


class Results(Protocol):
    """The evaluations of candidates; a dict is one that forgets them at the end of the process."""

    def get(self, candidate: Candidate, /) -> Evaluation | None:
        """Returns the evaluation of a candidate; None if there is none yet."""

    def __setitem__(self, candidate: Candidate, found: Evaluation, /) -> None:
        """Keeps the evaluation of a candidate."""


def finish_here(
    finish: Finish,
    steps: Iterable[int],
    weights: Weights,
    evaluator: RetrievalEvaluator,
    temperature_of: Callable[[Candidate], float],
    results: Results,
    tell: Callable[[Candidate], None] = lambda candidate: None,
) -> Choice:
    """Evaluates the candidates of which `results` knows nothing, and chooses one, whose weights the encoder then has.

    All ranks have to call it together. `steps` are the best steps; `temperature_of` returns the temperature of the
    loss; `tell` is called before each evaluation.
    """
    encoder = evaluator.embedder.encoder

    def evaluate(candidate: Candidate) -> Evaluation:
        found = results.get(candidate)
        lacks = distributed.any_rank(found is None, evaluator.device)  # then all ranks have to evaluate together
        if found is None or lacks:
            tell(candidate)
            encoder.load_state_dict(weights.of(candidate))
            found = evaluator.evaluate(temperature_of(candidate))
            if distributed.rank() == 0:
                results[candidate] = found
        return found

    choice = finish.choose(steps, evaluate)
    encoder.load_state_dict(weights.of(choice.candidate))
    return choice
