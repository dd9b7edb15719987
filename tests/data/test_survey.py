"""The numbers of a data set."""

import numpy as np
import pytest

from rqa_ray.data.survey import Split, Survey
from tests.builders import random_train_rows, table


@pytest.mark.parametrize("size", [2, 5, 12, 30, 99])
def test_the_share_of_false_negatives_is_that_of_random_batches(size) -> None:
    split = Split.from_tables([table("train", random_train_rows(30, seed=1, num_passages=8))])
    generator = np.random.default_rng(0)
    met = []
    for _ in range(2000):
        golds = split.golds[generator.permutation(30)[:size]]
        met.append(np.mean([np.sum(golds == gold) > 1 for gold in golds]))
    assert split.false_negative_share(size) == pytest.approx(np.mean(met), abs=0.02)


def test_scores_of_a_teacher_are_counted_and_those_that_are_no_cosines() -> None:
    scores = [[0.5, -1.2], [None, 1.0000001], [7.0]]
    rows = [
        row | {"hard_negative_ids": [1] * len(own), "hard_negative_scores": own}
        for row, own in zip(random_train_rows(3, seed=1, num_passages=2), scores, strict=True)
    ]
    counts = Split.from_tables([table("train", rows)]).counts
    assert (counts.num_scored, counts.num_no_cosines) == (4, 2)


def test_passages_of_train_with_another_text_in_the_corpus_are_counted_each_once() -> None:
    corpus = [{"line": number, "passage_id": number, "text_hash": 10 * number} for number in range(5)]
    train = [  # 1 is the same, 2 another in two blocks, 9 not in the corpus
        {"line": 0, "passage_id": 1, "new_passage_ids": [1, 2, 9], "new_passage_hashes": [10, 21, 91]},
        {"line": 1, "passage_id": 2, "new_passage_ids": [2, 3], "new_passage_hashes": [21, 30]},
    ]
    tables = {"train": [table("train", [row]) for row in train], "corpus": [table("corpus", corpus)]}
    assert Survey.of(tables).num_other_texts == 1
