"""BM25 and its fusion with embeddings, compared with their formulas and with known figures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid
from rqa_ray.data.records import read_records
from rqa_ray.evaluation.metrics import retrieval_metrics

TEXTS = ["Red apples and green apples.", "A green pear", "red red wine", "the sea"]
FAIRE = Path(__file__).parents[3] / "shared" / "data" / "faire"


def lucene(term_counts: list[int], lengths: list[int], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Returns Lucene's score of one term from its counts in each text."""
    found = sum(count > 0 for count in term_counts)
    idf = math.log(1 + (len(lengths) - found + 0.5) / (found + 0.5))
    average = sum(lengths) / len(lengths)
    return [
        idf * count / (count + k1 * (1 - b + b * length / average))
        for count, length in zip(term_counts, lengths, strict=True)
    ]


def test_a_corpus_without_words_scores_nothing():
    bm25 = Bm25(["the", "a and"])
    assert bm25.scores(["the sea", "apple"]).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert bm25.word_numbers(bm25.words(["apple"])[0]) == []


def test_scores_are_lucenes_without_stop_words_and_case():
    scores = Bm25(TEXTS).scores(["RED the", "green unheard"])
    lengths = [4, 2, 3, 1]
    torch.testing.assert_close(scores[0], torch.tensor(lucene([1, 0, 2, 0], lengths)))
    torch.testing.assert_close(scores[1], torch.tensor(lucene([1, 1, 0, 0], lengths)))


@pytest.mark.parametrize("question", ["", "the of", "unheard", "?!"])
def test_a_question_without_known_words_ranks_in_document_order(question):
    scores, positions = Bm25(TEXTS).rank([question, "pear"], 4)
    assert positions.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
    assert not scores[0].any()


def test_fusion_adds_z_scores_over_the_whole_corpus():
    bm25, passages, asked = Bm25(TEXTS), torch.randn(4, 6), torch.randn(2, 6)
    questions = ["red", "green pear"]
    dense, lexical = (asked @ passages.T).numpy(), bm25.scores(questions).numpy()
    expected = sum(
        weight * (part - part.mean(1, keepdims=True)) / part.std(1, keepdims=True)
        for weight, part in ((0.3, dense), (0.7, lexical))
    )
    ranked = Hybrid(bm25, passages).rank(questions, asked, [0.3, 1.0], 4)
    scores, positions = ranked[0.3]
    assert ranked[1.0][1].tolist() == np.argsort(-dense, axis=1).tolist()
    assert positions.tolist() == np.argsort(-expected, axis=1).tolist()
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-5)


def faire(split: str):
    """Texts, passage ids, questions and golds."""
    if not FAIRE.is_dir():
        pytest.skip(f"{FAIRE} is not there")
    documents = {}
    for _, document in read_records(str(FAIRE / "documents.pkl"), "documents"):
        documents.setdefault(document.passage_id, document.fmt_content)
    pairs = [
        (question, [document.passage_id for document in record.gold_docs])
        for _, record in read_records(str(FAIRE / f"{split}_w_q.jsonl"), "questions")
        for question in record.questions
    ]
    questions, golds = zip(*pairs, strict=True)
    return list(documents.values()), np.array(list(documents)), list(questions), list(golds)


def test_faire_has_the_known_figures():
    texts, ids, questions, golds = faire("test")
    metrics = retrieval_metrics(ids[Bm25(texts).rank(questions, 100)[1]], golds)
    assert metrics["retr/document_ndcg/ndcg10"] == pytest.approx(0.648, abs=5e-4)
    assert metrics["retr/document_recall/recall4"] == pytest.approx(55 / 75)
