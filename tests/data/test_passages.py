"""Passages are rows of a table, named by id; the hard negatives of all pairs can be replaced."""

import numpy as np
import pyarrow as pa
import pytest

from rqa_ray.data.batches import GlobalBatches, RankBatch
from rqa_ray.data.columns import Ragged
from rqa_ray.data.passages import Negatives, PassageTable
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.windows import Part, WindowedRows, WindowPlan
from tests.builders import random_train_rows, table

ROWS = [row | {"passage_id": line} for line, row in enumerate(random_train_rows(24, max_negatives=4))]  # no gold twice
CORPUS_IDS = np.arange(1_000, 1_060)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged([pa.array(rows, pa.list_(pa.int32()))], np.arange(len(rows)))


def corpus_negatives(round: int = 1) -> Negatives:
    """Two hard negatives from another table for each of the 24 pairs.

    Pair i has passages 1,000 + 2 i and 1,001 + 2 i, with i + 1 tokens.
    """
    passages = PassageTable.of(CORPUS_IDS, ragged([[7] * (number // 2 + 1) for number in range(60)]))
    return Negatives.of(passages, CORPUS_IDS[:48], np.arange(0, 49, 2), round=round)


def resident() -> TrainingRows:
    return TrainingRows.from_tables([table("train", ROWS)])


def windowed() -> WindowedRows:
    """The same rows in windows: four rows in a part, two parts in a window."""
    plan = WindowPlan([Part(0, "f", 4 * n, None, 100) for n in range(6)], np.full(6, 4), seed=3, window_bytes=200)

    def fetch(epoch: int, window: int) -> pa.Table:
        parts = np.sort(plan.epoch(epoch).parts[window])
        return table("train", [row for part in parts for row in ROWS[4 * part : 4 * part + 4]])

    return WindowedRows(plan, fetch)


def batches(rows: TrainingRows | WindowedRows, ratio: float = 0.5, own: int = 0) -> GlobalBatches:
    return GlobalBatches(rows, 8, ratio, seed=1, pad_id=0, negatives_per_question=own)


def negative_ids(batch: RankBatch) -> list[int]:
    return batch.passage_ids[batch.is_passage][batch.num_questions :].tolist()


def lengths(batch: RankBatch) -> list[int]:
    """Returns how many tokens the hard negatives have."""
    every = np.array([length for token_batch in batch.token_batches for length in token_batch.lengths])
    return every[batch.order.numpy()][2 * batch.num_questions :].tolist()


def test_of_an_id_that_comes_again_the_first_is_kept():
    passages = PassageTable.of(np.array([5, -2, 5, 9]), ragged([[1], [2, 2], [3, 3, 3], [4]]))
    assert passages.ids.tolist() == [-2, 5, 9]
    assert [row.tolist() for row in passages.tokens] == [[2, 2], [1], [4]]
    assert passages.rows_of(np.array([9, 5, 9])).tolist() == [2, 1, 2]


def test_an_id_that_is_not_in_the_table_is_an_error_that_shows_it():
    with pytest.raises(KeyError, match="1 passage ids, such as 7, are not among the 1"):
        PassageTable.of(np.array([5]), ragged([[1]])).rows_of(np.array([5, 7]))


@pytest.mark.parametrize("source", [resident, windowed])
def test_a_new_round_of_negatives_takes_the_place_of_the_first_also_in_a_batch_made_ahead(source):
    replaced, first = batches(source()), batches(source())
    assert negative_ids(replaced[0]) == negative_ids(first[0]) != []
    assert set(negative_ids(first[1])) < set(range(100, 200))
    replaced.set_negatives(corpus_negatives())
    for number in (1, 2, 3, 11):  # 3 opens the second epoch
        part = replaced[number]
        assert part.rows.tolist() == first[number].rows.tolist()
        pairs = part.passage_ids[: part.num_questions].tolist()  # each gold is of one pair, and has its number
        own = {1_000 + 2 * pair + place for pair in pairs for place in (0, 1)}
        assert len(negative_ids(part)) == 4 and set(negative_ids(part)) < own
        assert lengths(part) == [(number - 1_000) // 2 + 1 for number in negative_ids(part)]


def test_rows_in_windows_and_rows_in_memory_draw_the_same_new_negatives_for_the_same_pairs():
    replaced = batches(windowed(), ratio=2)
    replaced.set_negatives(corpus_negatives())
    part = replaced[2]
    pairs = part.passage_ids[: part.num_questions].tolist()
    assert sorted(negative_ids(part)) == sorted(1_000 + 2 * pair + place for pair in pairs for place in (0, 1))


@pytest.mark.parametrize("source", [resident, windowed])
def test_each_question_brings_of_its_own_negatives_those_of_the_new_round(source):
    replaced = batches(source(), ratio=0, own=1)
    replaced.set_negatives(corpus_negatives())
    draws = set()
    for number in range(6):
        part = replaced[number]
        pairs = part.passage_ids[: part.num_questions].tolist()
        assert sorted((brought - 1_000) // 2 for brought in negative_ids(part)) == sorted(pairs)
        draws |= set(negative_ids(part))
    assert len(draws) > 24  # a second epoch brings the other one of some


def test_the_draw_is_seeded_by_the_round_and_the_first_round_draws_as_if_there_were_no_rounds():
    draws = {}
    for number in (0, 1, 2):
        replaced = batches(resident(), own=1)
        replaced.set_negatives(corpus_negatives(number))
        draws[number] = [negative_ids(replaced[batch]) for batch in range(3)]
        again = batches(resident(), own=1)
        again.set_negatives(corpus_negatives(number))
        assert [negative_ids(again[batch]) for batch in range(3)] == draws[number]
    assert draws[0] != draws[1] != draws[2] != draws[0]
    rows, unchanged = resident(), batches(resident())
    unchanged.set_negatives(rows.negatives)
    assert [negative_ids(unchanged[b]) for b in range(3)] == [negative_ids(batches(rows)[b]) for b in range(3)]


def test_a_new_negative_that_is_a_gold_of_the_batch_is_not_drawn():
    rows = resident()
    replaced = batches(rows, ratio=10)
    golds = Negatives.of(rows.table, rows.passage_ids[[*range(1, 24), 0]], np.arange(25), round=1)  # of the next pair
    replaced.set_negatives(golds)
    part = replaced[0]
    drawn = {(pair + 1) % 24 for pair in part.passage_ids[: part.num_questions].tolist()}
    drawn -= set(part.gold_ids.flatten().tolist())
    assert drawn and set(negative_ids(part)) == drawn


def test_a_batch_has_the_teachers_scores_of_its_questions_with_their_golds_and_all_their_negatives():
    scored = corpus_negatives()
    scored.scores, scored.gold_scores = np.arange(48, dtype=np.float32), np.arange(24, dtype=np.float32) - 100
    replaced = batches(resident(), own=1)
    assert replaced[0].teacher is None  # the files have no scores
    replaced.set_negatives(scored)
    part = replaced[1]
    for row, pair in enumerate(part.passage_ids[: part.num_questions].tolist()):
        of_ids = dict(zip(part.teacher.ids[row].tolist(), part.teacher.scores[row].tolist(), strict=True))
        assert of_ids == {pair: pair - 100, 1_000 + 2 * pair: 2 * pair, 1_001 + 2 * pair: 2 * pair + 1}


def test_a_question_with_fewer_scored_negatives_has_its_gold_again_in_their_place():
    passages = PassageTable.of(CORPUS_IDS, ragged([[7]] * 60))
    scores = np.array([1, np.nan, 3], np.float32)
    negatives = Negatives.of(passages, CORPUS_IDS[:3], np.array([0, 0, 3]), scores, np.array([5, 6], np.float32))
    found = negatives.teacher_scores(np.array([1, 0]), np.array([70, 80]))
    assert found.ids.tolist() == [[70, 1_000, 1_001, 1_002], [80, 80, 80, 80]]
    assert found.scores.nan_to_num(-1).tolist() == [[6, 1, -1, 3], [5, 5, 5, 5]]


def test_negatives_of_another_number_of_pairs_are_refused():
    passages = PassageTable.of(CORPUS_IDS, ragged([[7]] * 60))
    with pytest.raises(ValueError, match="hard negatives of 2 pairs, where there are 24"):
        batches(resident()).set_negatives(Negatives.of(passages, CORPUS_IDS[:2], np.arange(3)))
