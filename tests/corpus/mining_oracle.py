"""Mining by brute force: all scores, one question at a time, sets and lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rqa_ray.corpus.mining import MiningRules
from rqa_ray.corpus.near_duplicates import LIMIT, Signatures


@dataclass
class Verdicts:
    """Of one question: its candidates in order, as (position, dense rank, BM25 rank), and what became of them."""

    candidates: list[tuple[int, int, int]]
    gold: set[int]
    same_text: set[int]
    near_duplicate: set[int]
    suspects: list[int]
    negatives: list[int]


def ranking(scores: np.ndarray, depth: int, found: np.ndarray) -> list[int]:
    """The best positions among those found, by (-score, position)."""
    return [int(place) for place in np.argsort(-scores, kind="stable") if found[place]][:depth]


def exact_scores(questions: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """(Q, P) fp32, each a dot product summed in fp64."""
    return (questions.astype(np.float64)[:, None] * passages.astype(np.float64)).sum(2).astype(np.float32)


def verdicts(
    rules: MiningRules,
    key: int,
    golds: list[int],
    dense: np.ndarray,
    lexical: np.ndarray,
    texts: list[str],
    num_passages: int,
    mine_from: tuple[str, ...] = ("dense", "bm25"),
    teacher: np.ndarray | None = None,
) -> Verdicts:
    """What becomes of the passages of the corpus for one question.

    dense: scores (P and more,) of the passages of the corpus, then of golds that it lacks; texts likewise.
    lexical: BM25's scores (P,). teacher: scores that decide in place of the dense ones.
    """
    every = np.ones(num_passages, bool)
    lists = {"dense": ranking(dense[:num_passages], rules.depth, every)} if "dense" in mine_from else {}
    lists |= {"bm25": ranking(lexical, rules.depth, lexical > 0)} if "bm25" in mine_from else {}
    ranks = {name: {place: rank for rank, place in enumerate(found, 1)} for name, found in lists.items()}
    order = {}
    for number, name in enumerate(ranks):
        for place, rank in ranks[name].items():
            order[place] = min(order.get(place, (rank, number)), (rank, number))
    candidates = sorted(order, key=order.__getitem__)
    named = [tuple(ranks.get(name, {}).get(place, 0) for name in ("dense", "bm25")) for place in candidates]

    signatures, scores = Signatures.of(texts), dense if teacher is None else teacher
    lowest = min(float(scores[gold]) for gold in golds)
    limit = lowest - (1 - rules.margin) * abs(lowest)
    found = Verdicts(
        [(place, *both) for place, both in zip(candidates, named, strict=True)], set(), set(), set(), [], []
    )
    left = []
    for place in candidates:
        near = signatures.contained(np.array(golds), np.full(len(golds), place))
        if place in golds:
            found.gold.add(place)
        elif texts[place] in [texts[gold] for gold in golds]:
            found.same_text.add(place)
        elif near.max() >= LIMIT:
            found.near_duplicate.add(place)
        elif float(scores[place]) >= limit:
            found.suspects.append(place)
        else:
            left.append(place)
    left = left[: 4 * rules.num_negatives]
    drawn = np.random.default_rng([rules.seed, rules.round, key % 2**64]).permutation(len(left))
    found.negatives = [left[number] for number in sorted(drawn[: rules.num_negatives])]
    return found
