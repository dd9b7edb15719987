"""The weight of a hybrid is chosen by the metrics it gives."""

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.evaluation.hybrid_weight import WEIGHTS, choose_weight


def test_the_weight_goes_to_the_one_that_finds_the_golds():
    generator = torch.Generator().manual_seed(0)
    texts = [f"word{number} word{number + 1}" for number in range(40)]
    questions = [f"word{number} word{number + 1}" for number in range(40)]
    bm25, ids = Bm25(texts), np.arange(40)
    golds = [[number] for number in range(40)]
    good, noise = torch.eye(40), torch.randn(40, 40, generator=generator)
    assert choose_weight(Hybrid(bm25, noise), questions, torch.eye(40), golds, ids) < 0.5
    blind = ["unheard"] * 40
    assert choose_weight(Hybrid(bm25, good), blind, torch.eye(40), golds, ids) == 0.5  # all but 0 are perfect
    assert choose_weight(Hybrid(bm25, good), questions, torch.eye(40), golds, ids) == 0.5
    assert WEIGHTS[0] == 0 and WEIGHTS[-1] == 1 and len(WEIGHTS) == 21
