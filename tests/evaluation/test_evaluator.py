"""Evaluation compared with plain loops over all texts, on one process and on 1, 2 and 4 real gloo ranks."""

import numpy as np
import pytest
import torch

from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.evaluation import evaluator as evaluate
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, LATENCY, METRIC_NAMES, name_at
from rqa_ray.evaluation.results import SplitResult
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.builders import table
from tests.ranks import run_ranks

TEMPERATURE = 0.05
NO_PASSAGE = 9_999  # a gold that the corpus has not
IDS = 1_000  # passage ids: the place in the corpus, from here


class World:
    """A corpus of 30 passages, some with the same text, and questions of two splits.

    As Arrow tables and as plain lists.
    """

    def __init__(self, num_passages: int = 30, num_eval: int = 7, num_test: int = 4) -> None:
        generator = np.random.default_rng(0)

        def tokens(longest: int) -> list[int]:
            return [2, *generator.integers(5, 140, generator.integers(1, longest)).tolist(), 3]

        self.texts = [tokens(40) for _ in range(num_passages)]
        self.text_hashes = list(range(50, 50 + num_passages))
        for copy, original in ((11, 4), (19, 4), (2, 27)):  # passages of other sources with the same text
            if max(copy, original) < num_passages:
                self.texts[copy], self.text_hashes[copy] = self.texts[original], self.text_hashes[original]
        self.questions = {
            split: [tokens(10) for _ in range(number)] for split, number in (("eval", num_eval), ("test", num_test))
        }
        self.golds = {
            split: [
                {int(gold) for gold in generator.integers(num_passages, size=1 + row % 3)} for row in range(number)
            ]
            for split, number in (("eval", num_eval), ("test", num_test))
        }
        self.golds["eval"][0] = {4 % num_passages, 11 % num_passages}
        self.golds["eval"][1] = {3 % num_passages, NO_PASSAGE - IDS}
        self.golds["test"][0] = {NO_PASSAGE - IDS}

    def corpus(self, num_blocks: int = 3) -> Corpus:
        rows = [
            {"line": line, "passage_id": IDS + line, "text_hash": self.text_hashes[line], "tokens": tokens}
            for line, tokens in enumerate(self.texts)
        ]
        rows.append(rows[0] | {"line": len(rows)})  # the first passage again: a duplicate
        return Corpus.from_tables([table("corpus", rows[block::num_blocks]) for block in range(num_blocks)])

    def splits(self) -> dict[str, Questions]:
        result = {}
        for split, questions in self.questions.items():
            rows = [
                {
                    "line": line,
                    "item": item,
                    "question_key": line,
                    "question_tokens": tokens,
                    "passage_id": IDS + gold,
                }
                for line, tokens in enumerate(questions)
                for item, gold in enumerate(sorted(self.golds[split][line]))
            ]
            result[split] = Questions.from_tables([table("questions", rows)])
        return result

    def evaluator(self, encoder: Encoder, max_tokens: int = 100, max_rows: int = 8) -> RetrievalEvaluator:
        return RetrievalEvaluator(
            self.corpus(),
            self.splits(),
            Embedder(encoder, EmbedOptions(0, max_tokens, max_rows)),
        )

    def evaluate(self, encoder: Encoder, **options) -> dict[str, SplitResult]:
        return self.evaluator(encoder, **options).evaluate(TEMPERATURE).splits

    def brute_force(self, encoder: Encoder) -> dict[str, SplitResult]:
        """Encodes each text alone, computes dot products, and sorts by (-score, position)."""
        texts = {tuple(tokens): encode(encoder, tokens) for tokens in self.texts}
        passages = np.stack([texts[tuple(tokens)] for tokens in self.texts])
        return {
            split: self._brute_force(split, np.stack([encode(encoder, tokens) for tokens in questions]), passages)
            for split, questions in self.questions.items()
        }

    def _brute_force(self, split: str, questions: np.ndarray, passages: np.ndarray) -> SplitResult:
        all_scores = np.array([[float(np.dot(question, passage)) for passage in passages] for question in questions])
        ranking = [[i for _, i in sorted((-score, i) for i, score in enumerate(row))][:100] for row in all_scores]
        totals: dict[str, list[float]] = {name: [] for name in METRIC_NAMES if name != LATENCY}
        for scores, ranked, golds in zip(all_scores, ranking, self.golds[split], strict=True):
            for k in (1, 4, 10, 100):
                totals[f"retr/document_recall/recall{k}"].append(golds <= set(ranked[:k]))
            hits = [place in golds for place in ranked]
            gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits[:10]))
            ideal = sum(1 / np.log2(rank + 2) for rank in range(min(len(golds), 10)))
            totals["retr/document_ndcg/ndcg10"].append(gain / ideal)
            totals["retr/document_mrr/mrr10"].append(max([hit / (i + 1) for i, hit in enumerate(hits[:10])]))
            totals["retr/document_accuracy/accuracy"].append(sum(hits[:4]) / min(4, len(hits)))
            inside = [gold for gold in golds if gold < len(scores)]
            others = [score for place, score in enumerate(scores) if place not in golds]
            losses = [
                np.logaddexp.reduce(np.array([scores[gold], *others]) / TEMPERATURE) - scores[gold] / TEMPERATURE
                for gold in inside
            ]
            totals["loss"] += [float(np.mean(losses))] if inside else []
        metrics = {name: float(np.mean(values)) for name, values in totals.items() if values}
        return SplitResult(metrics, np.sort(-all_scores, axis=1)[:, :100] * -1, np.array(ranking))


def encode(encoder: Encoder, tokens: list[int]) -> np.ndarray:
    token_batches, _ = length_sorted_batches([np.array(tokens)], 1000, 0)
    with torch.no_grad():
        return encoder(token_batches)[0].double().numpy()


def load(folder: str) -> Encoder:
    return load_encoder(folder, EncoderSettings())


@pytest.fixture(scope="module")
def expected(tiny_model) -> dict[str, SplitResult]:
    """Returns what plain loops find; neighbors in the rankings are too far apart for rounding to swap them."""
    results = World().brute_force(load(tiny_model).eval())
    for result in results.values():
        gaps = -np.diff(result.scores, axis=1)
        assert gaps[gaps > 0].min() > 1e-6
        assert (gaps == 0).any()  # the passages of one text
    return results


def assert_equal(found: dict[str, SplitResult], expected: dict[str, SplitResult]) -> None:
    assert found.keys() == expected.keys()
    for split, result in expected.items():
        np.testing.assert_array_equal(found[split].positions, result.positions)
        np.testing.assert_allclose(found[split].scores, result.scores, atol=1e-5)
        metrics = dict(found[split].metrics)
        assert metrics.pop(LATENCY) > 0
        assert metrics == pytest.approx(result.metrics, abs=1e-4)
        for name, value in result.metrics.items():  # which follow from the ranking alone
            assert name.endswith("loss") or metrics[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(1, 1), (100, 3), (100_000, 1000)])
def test_the_result_is_that_of_plain_loops_whatever_the_token_batches(tiny_model, expected, max_tokens, max_rows):
    found = World().evaluate(load(tiny_model), max_tokens=max_tokens, max_rows=max_rows)
    assert_equal(found, expected)
    assert tuple(found["eval"].metrics) == METRIC_NAMES
    recalls = [found["eval"].metrics[f"retr/document_recall/recall{k}"] for k in (1, 4, 10, 100)]
    assert 0 < recalls[-1] < 1  # one gold is not in the corpus
    assert recalls == sorted(recalls)


def test_the_result_does_not_depend_on_how_the_corpus_is_cut_into_blocks(tiny_model, expected, monkeypatch):
    monkeypatch.setattr(evaluate, "TEXTS_PER_BLOCK", 7)
    assert_equal(World().evaluate(load(tiny_model)), expected)


def test_passages_of_one_text_are_encoded_once_and_ranked_in_document_order(tiny_model):
    world = World()
    evaluator = world.evaluator(load(tiny_model))
    done: list[tuple[int, int]] = []
    evaluator.on_progress = lambda *progress: done.append(progress)
    found = evaluator.evaluate(TEMPERATURE).splits
    num_questions = len(world.questions["eval"]) + len(world.questions["test"])
    assert [total for _, total in done if total != num_questions][0] == done[-1][0] == 27  # 30 passages, 27 texts
    assert (num_questions, num_questions) in done
    for result in found.values():
        for scores, positions in zip(result.scores, result.positions.tolist(), strict=True):
            for first, *others in ((4, 11, 19), (2, 27)):
                place = positions.index(first)
                assert positions[place : place + 1 + len(others)] == [first, *others]
                assert len(set(scores[place : place + 1 + len(others)].tolist())) == 1


def test_a_corpus_smaller_than_k_is_ranked_whole(tiny_model):
    world = World(num_passages=3)
    found = world.evaluate(load(tiny_model))
    assert found["eval"].positions.shape == (7, 3)
    assert_equal(found, world.brute_force(load(tiny_model).eval()))


def test_a_corpus_of_more_than_a_hundred_passages_is_cut_at_a_hundred(tiny_model):
    world = World(num_passages=130)
    encoder = load(tiny_model)
    found = world.evaluate(encoder)
    results = world.brute_force(encoder.eval())
    for split, result in found.items():
        assert result.positions.shape[1] == 100
        np.testing.assert_allclose(result.scores, results[split].scores, atol=1e-5)
        assert result.metrics["loss"] == pytest.approx(results[split].metrics["loss"], abs=1e-4)


def test_a_split_whose_golds_are_all_missing_has_recall_zero_and_no_loss(tiny_model):
    world = World(num_test=1)
    metrics = world.evaluate(load(tiny_model))["test"].metrics
    assert "loss" not in metrics
    assert {value for name, value in metrics.items() if LATENCY not in name} == {0.0}


def test_the_mode_of_the_encoder_and_its_gradients_are_left_as_they_were(tiny_model, expected):
    encoder = load(tiny_model)  # its dropout would change the ranking
    for training in (True, False):
        encoder.train(training)
        assert_equal(World().evaluate(encoder), expected)
        assert encoder.training == encoder.transformer.training == training
    assert all(value.grad is None for value in encoder.parameters())
    encoder(
        length_sorted_batches([np.array([2, 9, 3])], 10, 0)[0]
    ).sum().backward()  # inference mode has not leaked into the weights


def test_mixed_precision_changes_scores_a_little(tiny_model, expected):
    evaluator = World().evaluator(load(tiny_model))
    evaluator.embedder.options.mixed_precision = torch.bfloat16
    found = evaluator.evaluate(TEMPERATURE).splits
    difference = np.abs(found["eval"].scores - expected["eval"].scores).max()
    assert 1e-4 < difference < 0.1
    assert found["eval"].scores.dtype == np.float32


def on_rank(model_folder: str, sizes: list[dict[str, int]]) -> list[dict[str, SplitResult]]:
    return [World(**size).evaluate(load(model_folder)) for size in sizes]


def hybrid_on_rank(model_folder: str) -> dict[str, SplitResult]:
    """An evaluation that is told which passages BM25 finds: of each question its own number, and the last."""
    world = World()
    evaluator = world.evaluator(load(model_folder))
    found = {split: np.array([[row, 29] for row in range(len(part))]) for split, part in world.questions.items()}
    told = RetrievalEvaluator(evaluator.corpus, evaluator.questions, evaluator.embedder, found, (16, 4))
    return told.evaluate(TEMPERATURE).splits


def test_scores_of_what_bm25_finds_and_the_moments_of_all_are_those_of_the_ranking(tiny_model, expected, tmp_path):
    alone = hybrid_on_rank(tiny_model)
    (two, other) = run_ranks(2, hybrid_on_rank, tmp_path, tiny_model)
    for split, result in expected.items():
        of_bm25 = alone[split].of_bm25
        np.testing.assert_allclose(of_bm25.mean, result.scores.mean(1), atol=1e-5)
        np.testing.assert_allclose(of_bm25.deviation, result.scores.std(1), atol=1e-5)
        for row, (first, last) in enumerate(of_bm25.positions.tolist()):
            ranked = dict(zip(alone[split].positions[row].tolist(), alone[split].scores[row].tolist(), strict=True))
            assert of_bm25.scores[row].tolist() == [ranked[first], ranked[last]], "to the bit"
        assert two[split].metrics.keys() == alone[split].metrics.keys() > result.metrics.keys()
        for name, value in alone[split].metrics.items():
            assert name == LATENCY or two[split].metrics[name] == pytest.approx(value, abs=1e-4)
        for name, values in vars(of_bm25).items():
            np.testing.assert_allclose(getattr(two[split].of_bm25, name), values, rtol=1e-5)
            np.testing.assert_array_equal(getattr(two[split].of_bm25, name), getattr(other[split].of_bm25, name))
    assert World().evaluate(load(tiny_model))["eval"].of_bm25 is None


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_metrics_of_cut_embeddings_are_those_of_a_model_that_cuts_them(tiny_model, similarity):
    world, dimensions = World(num_passages=60), (16, 3, 32)

    def encoder(**cut) -> Encoder:
        return load_encoder(tiny_model, EncoderSettings(similarity=similarity, normalize=False, **cut))

    whole = world.evaluator(encoder())
    found = RetrievalEvaluator(whole.corpus, whole.questions, whole.embedder, dimensions=dimensions)
    metrics = found.evaluate(TEMPERATURE).metrics
    for number in dimensions:
        for split, result in world.evaluate(encoder(truncate_dim=number)).items():
            for label in HEADLINES:
                assert metrics[f"{split}_{name_at(label, number)}"] == result.metrics[LABELS[label]]
    assert metrics["eval_retr/document_ndcg/ndcg10_dim3"] != metrics["eval_retr/document_ndcg/ndcg10_dim16"]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_finds_the_same_and_all_ranks_know_it(tiny_model, expected, tmp_path, world_size):
    # 11 questions; then 3 questions and 3 passages, fewer than the 4 ranks.
    small = {"num_passages": 3, "num_eval": 2, "num_test": 1}
    small_expected = World(**small).brute_force(load(tiny_model).eval())
    ranks = run_ranks(world_size, on_rank, tmp_path, tiny_model, [{}, small])
    for found, small_found in ranks:
        assert_equal(found, expected)
        assert_equal(small_found, small_expected)
        for split in found:
            assert found[split].metrics == ranks[0][0][split].metrics  # to the last bit, latency too
            np.testing.assert_array_equal(found[split].scores, ranks[0][0][split].scores)
