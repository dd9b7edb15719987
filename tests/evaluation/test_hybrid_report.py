"""What is said about the hybrid of a trained model and BM25, and what is stored, equal the exact hybrid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rqa_ray.corpus.bm25 import HYBRID_FILE, Bm25, Hybrid, Weight
from rqa_ray.corpus.hybrid_pairs import HybridWeight
from rqa_ray.corpus.topk import search_blocks
from rqa_ray.data.schema import Document
from rqa_ray.evaluation import hybrid_report
from rqa_ray.evaluation.hybrid_report import found_by_bm25, rank, report
from rqa_ray.evaluation.hybrid_scores import HybridScores
from rqa_ray.evaluation.hybrid_weight import WEIGHTS, choose_weight
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.evaluation.results import Evaluation, SplitResult
from tests.builders import table

NUMBER = 300  # passages; the lists of candidates have 100
WORDS = [f"word{number}" for number in range(60)]


def text(generator: np.random.Generator, length: int) -> str:
    return " ".join(generator.choice(WORDS, length))


class World:
    """Passages and questions of random words, and random embeddings that know a little about the golds."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        texts = [text(generator, 12) for _ in range(NUMBER)]
        self.passages = [Document(one, "", {"source": f"s{number}"}) for number, one in enumerate(texts)]
        rows = [
            {"line": line, "passage_id": document.passage_id, "document": json.dumps(document.to_dict())}
            for line, document in enumerate(self.passages)
        ]
        self.documents = Documents([table("corpus", rows)])
        self.embeddings = torch.nn.functional.normalize(
            torch.from_numpy(generator.normal(size=(NUMBER, 16))).float(), dim=1
        )
        self.asked, self.questions = {}, {}
        for split, count in (("eval", 40), ("test", 25)):
            golds = generator.integers(NUMBER, size=count)
            words = [" ".join(texts[gold].split()[:2]) + " " + text(generator, 3) for gold in golds]
            rows = [
                {
                    "line": line,
                    "question": question,
                    "question_key": line,
                    "passage_id": self.passages[gold].passage_id,
                    "gold_doc": json.dumps(self.passages[gold].to_dict()),
                }
                for line, (question, gold) in enumerate(zip(words, golds.tolist(), strict=True))
            ]
            self.asked[split] = AskedQuestions([table("questions", rows)])
            noise = torch.from_numpy(generator.normal(size=(count, 16))).float()
            self.questions[split] = torch.nn.functional.normalize(self.embeddings[golds] + 0.4 * noise, dim=1)

    def index(self) -> Bm25:
        return Bm25(self.documents.texts())

    def report(self, found: Evaluation, folder: Path) -> str:
        return report(self.asked, self.documents.passage_ids, found, folder, self.index)

    def evaluation(self) -> Evaluation:
        """What an evaluation finds with these embeddings, whose corpus comes in blocks."""
        lists = found_by_bm25(self.asked, self.index())
        blocks = [(part, self.embeddings[part]) for part in torch.arange(NUMBER).split(70)]
        found = Evaluation()
        for split, questions in self.questions.items():
            scores, positions = search_blocks(questions, blocks, 100).result()
            hybrid = HybridScores(questions, lists[split])
            for places, block in reversed(blocks):
                hybrid.add(block, places)
            hybrid.merge()
            of_bm25 = hybrid.result(slice(0, len(questions)))
            found.splits[split] = SplitResult({}, scores.numpy(), positions.numpy(), of_bm25)
        return found


@pytest.fixture(scope="module")
def world() -> World:
    pytest.importorskip("bm25s")
    return World()


def test_moments_and_scores_of_blocks_are_those_of_the_whole_matrix(world):
    found = world.evaluation()
    for split, questions in world.questions.items():
        of_bm25, scores = found.splits[split].of_bm25, (questions.double() @ world.embeddings.double().T).numpy()
        np.testing.assert_allclose(of_bm25.mean, scores.mean(1), atol=1e-12)
        np.testing.assert_allclose(of_bm25.deviation, scores.std(1), atol=1e-12)
        np.testing.assert_allclose(of_bm25.scores, np.take_along_axis(scores, of_bm25.positions, 1), atol=1e-6)


def test_the_first_places_are_those_of_the_exact_hybrid_with_any_weight(world):
    bm25, asked = world.index(), world.asked["test"].questions
    found = rank(bm25, asked, world.evaluation().splits["test"], WEIGHTS)
    exact = Hybrid(bm25, world.embeddings).rank(asked, world.questions["test"], WEIGHTS, 100)
    for weight in WEIGHTS:
        assert found[weight].shape == exact[weight][1].shape == (25, 100)
        assert (found[weight][:, :10] == exact[weight][1][:, :10]).all(), weight
        assert all(len(set(row)) == 100 for row in found[weight].tolist())


def test_the_line_and_the_file_have_the_weight_that_eval_chooses_and_its_metrics(world, tmp_path):
    line = world.report(world.evaluation(), tmp_path)
    exact, ids = Hybrid(world.index(), world.embeddings), world.documents.passage_ids
    chosen = choose_weight(
        exact, world.asked["eval"].questions, world.questions["eval"], world.asked["eval"].gold_ids, ids
    )
    stored = json.loads((tmp_path / HYBRID_FILE).read_text())
    assert 0 < stored["weight"] == chosen < 1
    ranked = exact.rank(world.asked["test"].questions, world.questions["test"], [chosen], 100)[chosen][1]
    metrics = retrieval_metrics(ids[ranked], world.asked["test"].gold_ids)
    del metrics["retr/document_recall/recall100"]  # the last places of the ranking may be in neither list
    assert stored["test"]["hybrid"] == pytest.approx(metrics)
    ndcg = {kind: stored["test"][kind]["retr/document_ndcg/ndcg10"] for kind in ("alone", "hybrid")}
    assert line.startswith(f"with BM25 (hybrid, weight {chosen:g} of the model, chosen on eval): eval nDCG@10 0.")
    assert f"; test nDCG@10 {ndcg['alone']:.3f} -> {ndcg['hybrid']:.3f} (p = " in line
    assert Weight.of(None, str(tmp_path)) == Weight(chosen, "the weight stored with the model")


def test_a_model_that_needs_no_bm25_is_told_so(world, tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid_report, "best_weight", lambda *given: HybridWeight(1.0, 0.5, 0.5, 0.5))
    assert "finds no more than the model alone" in world.report(world.evaluation(), tmp_path)
    assert Weight.of(None, str(tmp_path)).value == 1


def test_where_it_is_not_measured_one_line_says_why_and_no_weight_is_stored(world, tmp_path, monkeypatch):
    found = world.evaluation()
    monkeypatch.setattr(world, "index", lambda: pytest.fail("the corpus is indexed"))
    for result in found.splits.values():
        result.of_bm25 = None
    assert "of an earlier version" in world.report(found, tmp_path)
    monkeypatch.setattr(hybrid_report, "MOST_PASSAGES", NUMBER - 1)
    assert "the corpus has more than 299 passages" in world.report(found, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install -e ".[bm25]"' in world.report(found, tmp_path)
    assert not (tmp_path / HYBRID_FILE).exists() and Weight.of(None, str(tmp_path)) is None


def test_a_weight_that_the_user_gives_comes_before_the_stored_one(tmp_path):
    (tmp_path / HYBRID_FILE).write_text('{"weight": 0.25}')
    assert Weight.of(None, str(tmp_path)).value == 0.25
    said = Weight.of(0.7, str(tmp_path)).describe()
    assert said == "hybrid: 0.7 of the embeddings' z-scores and 0.3 of BM25's, as --hybrid_weight says"
