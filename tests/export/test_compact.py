"""Embeddings in fewer bits rank as sentence-transformers' own numbers do."""

import numpy as np
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from rqa_ray.export.compact import as_bits, as_int8, as_passage_bits


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 20, generator=generator), torch.randn(40, 20, generator=generator)


def test_bits_rank_by_the_number_of_equal_bits():
    pair = random_pair()
    questions, passages = (np.unpackbits(quantize_embeddings(part.numpy(), "ubinary"), axis=1) for part in pair)
    differing = (questions[:, None] != passages[None]).sum(axis=2)
    found = as_bits(*pair)
    assert torch.equal(found[0] @ found[1].T, torch.from_numpy(20.0 - 2 * differing).float())


def test_questions_may_keep_their_numbers():
    questions, passages = as_passage_bits(*random_pair())
    assert torch.equal(questions, random_pair()[0]) and set(passages.unique().tolist()) == {-1, 1}


def test_int8_covers_the_range_of_each_number_of_the_passages():
    questions, passages = as_int8(*random_pair())
    assert passages.amin(0).tolist() == [-128] * 20 and passages.amax(0).min() >= 126
    assert questions.min() >= -128 and questions.max() <= 127
