"""The weight of a hybrid is chosen by the metrics it gives."""

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.corpus.hybrid_pairs import PassageMoments, WordScores, ZScores, z_scores
from rqa_ray.corpus.mining import Candidates
from rqa_ray.evaluation.hybrid_weight import WEIGHTS, choose_weight, weigh


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


def test_weighing_candidates_alone_chooses_as_weighing_the_whole_corpus_does():
    generator = np.random.default_rng(0)
    texts = [" ".join(f"word{number}" for number in generator.integers(0, 60, 12)) for _ in range(300)]
    questions = [" ".join(text.split()[:3]) for text in texts[:40]]
    golds = [[number] if number % 4 else [number, 299 - number] for number in range(40)]
    bm25, ids = Bm25(texts), np.arange(300) + 1_000
    passages = torch.from_numpy(generator.normal(size=(300, 16)).astype(np.float32))
    asked = passages[:40] + 1.2 * torch.from_numpy(generator.normal(size=(40, 16)).astype(np.float32))
    gold_ids = [[1_000 + number for number in row] for row in golds]
    hybrid = Hybrid(bm25, passages)
    expected = choose_weight(hybrid, questions, asked, gold_ids, ids)
    assert 0 < expected < 1

    dense = (asked @ passages.T).numpy()
    top = np.argsort(-dense, axis=1)[:, :100]
    ranked = bm25.rank(questions, 100)[1]
    candidates = Candidates.united((top, top * 0.0), (ranked, ranked * 0.0))
    moments = PassageMoments(16)
    moments.add(passages)
    means, deviations = moments.of_questions(asked)
    rows, positions = candidates.questions, candidates.positions
    of_model = z_scores(dense[rows, positions], means[rows], deviations[rows])
    scores = ZScores(of_model, WordScores.of(bm25, questions).z_scores(rows, positions))
    found = weigh(candidates, scores, gold_ids, ids)
    assert found.weight == expected and found.together > max(found.model, found.bm25) > 0
    assert found.describe().startswith(f"{expected:g} of the model's z-scores and {1 - expected:g} of BM25's (nDCG@10")
