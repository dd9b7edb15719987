"""Computes retrieval metrics from ranked passage ids and gold passage ids.

Every number depends only on the rank of each gold passage in the ranking of its question. The caller ranks by (-score,
document order), so this file does not decide how ties are broken.

Shapes: Q questions, K retrieved passages per question, G pairs of a question and one of its gold passages.
"""

import numpy as np

from rqa_ray.data.golds import GoldIds, Golds

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
MEANINGS = (  # for people, in the order of LABELS
    "recall@k: the share of the questions whose golds (the right passages) are all among the first k passages.",
    f"nDCG@{TOP_CUTOFF}: how high the golds are among the first {TOP_CUTOFF} passages; 1 if they come first.",
    f"MRR@{TOP_CUTOFF}: 1 divided by the rank of the first gold, or 0 if no gold is among the first {TOP_CUTOFF}.",
    f"accuracy@{ACCURACY_CUTOFF}: the share of the first {ACCURACY_CUTOFF} passages that are golds; with one gold, at "
    f"most {1 / ACCURACY_CUTOFF:g}.",
)
HEADLINES = ("recall@4", "nDCG@10")  # the metrics by which runs are compared
METRIC_NAMES = (
    *LABELS.values(),
    LATENCY,
    "loss",
)
PAIRS_AT_ONCE = 1 << 16  # 65,536 pairs times 100 ranks of 8 bytes: about 52 MB


def metric_names(split: str) -> list[str]:
    """Returns the names that an evaluation of `split` logs, such as "eval_loss"."""
    return [f"{split}_{name}" for name in METRIC_NAMES]


def short_name(metric: str) -> str:
    """Returns the last part of a metric's full name, such as recall4."""
    return metric.rsplit("/", 1)[-1]


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
    share of the top 4 that are gold. The gain of nDCG is the grade of a gold, as in trec_eval; the ideal ranking has
    the golds on top, the highest grade first. The other metrics do not read grades.

    ranked_ids: (Q, K) in rank order, no id twice in a row; K is below 100 if the corpus is smaller.

    gold_ids: `Golds`, or Q lists of at least one id of grade 1; an id that is repeated within a question counts once.
    """
    golds = gold_ids if isinstance(gold_ids, Golds) else Golds.of_lists(gold_ids)
    questions, ranks = _gold_ranks(ranked_ids, golds)
    num_questions, num_retrieved = ranked_ids.shape
    starts = golds.offsets[:-1]
    first, last = np.minimum.reduceat(ranks, starts), np.maximum.reduceat(ranks, starts)

    grades = np.ones(len(ranks)) if golds.grades is None else golds.grades
    by_grade = np.lexsort([-grades, questions])  # questions stay in order
    places = np.arange(len(ranks)) - starts[questions]  # in the ideal ranking
    gains = _discounted(questions, np.where(ranks < num_retrieved, ranks, TOP_CUTOFF), grades)
    ideal = _discounted(questions, places, grades[by_grade])
    read = min(ACCURACY_CUTOFF, num_retrieved)

    metrics = {f"retr/document_recall/recall{k}": (last < min(k, num_retrieved)) * 1.0 for k in RECALL_CUTOFFS}
    metrics[f"retr/document_ndcg/ndcg{TOP_CUTOFF}"] = gains / ideal
    metrics[f"retr/document_mrr/mrr{TOP_CUTOFF}"] = np.where(
        first < min(TOP_CUTOFF, num_retrieved), 1 / (first + 1), 0.0
    )
    metrics["retr/document_accuracy/accuracy"] = np.bincount(questions[ranks < read], minlength=num_questions) / read
    return metrics


def _discounted(questions: np.ndarray, places: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Returns (Q,) the discounted sums of the grades (G,) of golds at 0-based places (G,) above the cutoff."""
    in_top = places < TOP_CUTOFF
    gains = grades[in_top] / np.log2(places[in_top] + 2)
    return np.bincount(questions[in_top], gains, minlength=int(questions[-1]) + 1)


def _gold_ranks(ranked_ids: np.ndarray, golds: Golds) -> tuple[np.ndarray, np.ndarray]:
    """Returns the question (G,) and the 0-based rank (G,) of every gold, by question.

    Rank K if not retrieved.
    """
    num_questions, num_retrieved = ranked_ids.shape
    counts = np.diff(golds.offsets)
    if len(counts) != num_questions or not num_questions or not num_retrieved:
        raise ValueError(f"Nothing to score: rankings {ranked_ids.shape}, gold ids of {len(counts)} questions.")
    if not counts.all():
        raise ValueError(f"Question {int(np.argmin(counts))} has no gold passage: its recall is not defined.")
    questions = np.repeat(np.arange(num_questions), counts)
    ranks = np.empty(len(questions), dtype=np.int64)
    for start in range(0, len(questions), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        found = ranked_ids[questions[part]] == golds.ids[part, None]
        ranks[part] = np.where(found.any(axis=1), found.argmax(axis=1), num_retrieved)
    return questions, ranks
