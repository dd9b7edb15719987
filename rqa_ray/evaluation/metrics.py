"""Computes retrieval metrics from ranked passage ids and gold passage ids; uses numpy only.

Every number depends only on the rank of each gold passage in the ranking of its question. The caller ranks by (-score,
document order), so this file does not decide how ties are broken.

Shapes: Q questions, K retrieved passages per question, G pairs of a question and one of its gold passages.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

RECALL_CUTOFFS = (1, 4, 10, 100)
TOP_CUTOFF = 10  # cutoff of nDCG and MRR
ACCURACY_CUTOFF = 4  # LocalRQA hands the top 4 passages to its reader
LATENCY = "retr/latency/avg_latency"  # seconds per question
LABELS = {  # names for people, and full names
    **{f"recall@{k}": f"retr/document_recall/recall{k}" for k in RECALL_CUTOFFS},
    f"nDCG@{TOP_CUTOFF}": f"retr/document_ndcg/ndcg{TOP_CUTOFF}",
    f"MRR@{TOP_CUTOFF}": f"retr/document_mrr/mrr{TOP_CUTOFF}",
    f"accuracy@{ACCURACY_CUTOFF}": "retr/document_accuracy/accuracy",
}
HEADLINES = ("recall@4", "nDCG@10")  # the metrics by which runs are compared
METRIC_NAMES = (
    *LABELS.values(),
    LATENCY,
    "loss",
)
PAIRS_AT_ONCE = 1 << 16  # 65,536 pairs times 100 ranks of 8 bytes: about 52 MB

GoldIds = Sequence[Sequence[int] | np.ndarray]


def metric_names(split: str) -> list[str]:
    """Returns the names that an evaluation of `split` logs, such as "eval_loss"."""
    return [f"{split}_{name}" for name in METRIC_NAMES]


def name_at(label: str, dimensions: int) -> str:
    """Returns the name of one of `HEADLINES` for embeddings that are cut to some dimensions, without the split."""
    return f"{LABELS[label]}_dim{dimensions}"


def greater_is_better(name: str) -> bool:
    """Returns whether a larger value of the metric `name`, with or without its split, is better."""
    return not name.endswith(("loss", LATENCY))


def retrieval_metrics(ranked_ids: np.ndarray, gold_ids: GoldIds) -> dict[str, float]:
    """Returns the means over questions of `question_metrics`, by metric name without the split."""
    return {name: float(values.mean()) for name, values in question_metrics(ranked_ids, gold_ids).items()}


def question_metrics(ranked_ids: np.ndarray, gold_ids: GoldIds) -> dict[str, np.ndarray]:
    """Returns (Q,) float64 values by metric name without the split; latency and loss are measured elsewhere.

    recall@k is strict: 1 if **all** golds of the question are in the top k. This is LocalRQA's definition; with one
    gold per question it is the usual recall@k. A gold that is not in the corpus can never be recalled. accuracy is the
    share of the top 4 that are gold. nDCG has binary gains, and its ideal ranking has all golds on top.

    ranked_ids: (Q, K) in rank order, no id twice in a row; K is below 100 if the corpus is smaller.

    gold_ids: Q lists of at least one id; an id that is repeated within a question counts once.
    """
    questions, ranks = _gold_ranks(ranked_ids, gold_ids)
    num_questions, num_retrieved = ranked_ids.shape
    starts = np.searchsorted(questions, np.arange(num_questions))
    num_golds = np.bincount(questions, minlength=num_questions)
    first, last = np.minimum.reduceat(ranks, starts), np.maximum.reduceat(ranks, starts)

    discounts = 1 / np.log2(np.arange(TOP_CUTOFF) + 2)
    in_top = ranks < min(TOP_CUTOFF, num_retrieved)
    gains = np.bincount(questions[in_top], discounts[ranks[in_top]], minlength=num_questions)
    ideal = np.cumsum(discounts)[np.minimum(num_golds, TOP_CUTOFF) - 1]
    read = min(ACCURACY_CUTOFF, num_retrieved)

    metrics = {f"retr/document_recall/recall{k}": (last < min(k, num_retrieved)) * 1.0 for k in RECALL_CUTOFFS}
    metrics[f"retr/document_ndcg/ndcg{TOP_CUTOFF}"] = gains / ideal
    metrics[f"retr/document_mrr/mrr{TOP_CUTOFF}"] = np.where(
        first < min(TOP_CUTOFF, num_retrieved), 1 / (first + 1), 0.0
    )
    metrics["retr/document_accuracy/accuracy"] = np.bincount(questions[ranks < read], minlength=num_questions) / read
    return metrics


def _gold_ranks(ranked_ids: np.ndarray, gold_ids: GoldIds) -> tuple[np.ndarray, np.ndarray]:
    """Returns the question (G,) and the 0-based rank (G,) of every distinct gold, by question.

    Rank K if not retrieved.
    """
    num_questions, num_retrieved = ranked_ids.shape
    counts = np.fromiter(map(len, gold_ids), dtype=np.int64)
    if len(counts) != num_questions or not num_questions or not num_retrieved:
        raise ValueError(f"Nothing to score: rankings {ranked_ids.shape}, gold ids of {len(counts)} questions.")
    if not counts.all():
        raise ValueError(f"Question {int(np.argmin(counts))} has no gold passage: its recall is not defined.")
    golds = np.fromiter(chain.from_iterable(gold_ids), dtype=np.int64, count=int(counts.sum()))
    questions = np.repeat(np.arange(num_questions), counts)
    order = np.lexsort((golds, questions))
    golds, questions = golds[order], questions[order]
    new = np.ones(len(golds), dtype=bool)
    new[1:] = (golds[1:] != golds[:-1]) | (questions[1:] != questions[:-1])
    golds, questions = golds[new], questions[new]

    ranks = np.empty(len(golds), dtype=np.int64)
    for start in range(0, len(golds), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        found = ranked_ids[questions[part]] == golds[part, None]
        ranks[part] = np.where(found.any(axis=1), found.argmax(axis=1), num_retrieved)
    return questions, ranks
