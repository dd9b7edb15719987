"""Padding and the other golds of a question are not candidates."""

import torch

from rqa_ray.retriever.candidates import Candidates, false_negatives


def test_false_negatives_are_padding_and_the_other_columns_of_a_gold_only():
    mask = false_negatives(
        candidate_ids=torch.tensor([10, 11, 10, 12, 13, 0]),
        is_candidate=torch.tensor([True, True, True, True, True, False]),
        # The first has one gold (and a filler), the second two, the third asks for the first one's passage.
        gold_ids=torch.tensor([[10, 10], [11, 13], [10, 10]]),
        labels=torch.tensor([0, 1, 2]),
    )
    x, o = True, False
    expected = [[o, o, x, o, o, x], [o, o, o, o, x, x], [x, o, o, o, o, x]]
    assert mask.tolist() == expected


def test_the_label_column_is_never_masked_on_any_rank():
    # Rank 1 of 2, two passages a rank: the same two passages on both.
    mask = false_negatives(
        torch.tensor([5, 6, 5, 6]), torch.ones(4, dtype=torch.bool), torch.tensor([[5], [6]]), torch.tensor([2, 3])
    )
    assert mask.tolist() == [[True, False, False, False], [False, True, False, False]]


def test_a_passage_is_not_scored_against_other_questions_that_have_it_as_a_gold_nor_against_padding():
    ids, golds = torch.tensor([10, 11, 10, 12]), torch.tensor([[10, 10], [11, 12], [10, 10], [12, 12]])
    candidates = Candidates(torch.zeros(4, 2), ids, torch.ones(4, dtype=torch.bool), torch.arange(4), golds)
    askers = candidates.with_askers(torch.ones(4, 2), most=5).askers
    x, o = True, False
    assert askers.masked().tolist() == [[o, o, x, o, x], [o, o, o, o, x], [x, o, o, o, x], [o, x, o, o, x]]
    assert torch.equal(askers.masked(slice(1, 3)), askers.masked()[1:3])
    assert askers.embeddings.tolist() == [[1, 1]] * 4 + [[0, 0]]


def test_the_mask_of_some_rows_is_that_part_of_the_whole_mask():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (9,), generator=generator)
    golds = torch.randint(5, (4, 2), generator=generator)
    candidates = Candidates(torch.zeros(9, 2), ids, torch.arange(9) < 8, torch.arange(4), golds)
    assert candidates.masked().any() and torch.equal(candidates.masked(slice(1, 3)), candidates.masked()[1:3])
