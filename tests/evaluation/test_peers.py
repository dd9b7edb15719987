"""Metrics compared with those of other tools, on rankings of real data."""

import numpy as np
import pytest

from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.data.files import find_files
from rqa_ray.data.records import read_records
from rqa_ray.evaluation.metrics import question_metrics
from tests.corpus.test_bm25 import FAIRE

DATA = {
    "faire": (FAIRE / "documents.pkl", FAIRE / "test_w_q.jsonl"),
    "medquad": (FAIRE.parent / "medquad" / "documents.jsonl.gz", FAIRE.parent / "medquad" / "test.jsonl.gz"),
}


def fractional_recall(ranked: np.ndarray, golds: list[list[int]], k: int) -> np.ndarray:
    """Returns the share of a question's golds in its top k, which other tools call recall@k."""
    return np.array([np.isin(list(set(gold)), row[:k]).mean() for row, gold in zip(ranked, golds, strict=True)])


@pytest.fixture(scope="module", params=DATA)
def ranked(request):
    """BM25 rankings of up to 400 questions: ids (Q, 100), scores, golds."""
    documents_path, questions_path = DATA[request.param]
    if not documents_path.is_file():
        pytest.skip(f"{documents_path} is not there")
    (documents_file,) = find_files([str(documents_path)], "document_path")
    documents = {}
    for _, document in read_records(documents_file, "documents"):
        documents.setdefault(document.passage_id, document.fmt_content)
    by_wording: dict[str, set[int]] = {}
    for _, record in read_records(str(questions_path), "questions"):
        for question in record.questions:
            by_wording.setdefault(question, set()).update(document.passage_id for document in record.gold_docs)
    questions = list(by_wording)[:400]
    scores, positions = Bm25(list(documents.values())).rank(questions, 100)
    return np.array(list(documents))[positions], scores, [list(by_wording[question]) for question in questions]


def test_ndcg_mrr_and_recall_equal_pytrec_eval_question_by_question(ranked):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ids, _, golds = ranked
    names = [str(number) for number in range(len(golds))]
    judged = {name: {str(gold): 1 for gold in row} for name, row in zip(names, golds, strict=True)}
    # It breaks ties by name: descending numbers in place of scores keep our order.
    run = {
        name: {str(one): 100.0 - place for place, one in enumerate(row)} for name, row in zip(names, ids, strict=True)
    }
    measures = {"ndcg_cut.10", "recall.1,4,10,100", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    ours = question_metrics(ids, golds)
    theirs = {measure: np.array([found[name][measure] for name in names]) for measure in found["0"]}
    np.testing.assert_allclose(ours["retr/document_ndcg/ndcg10"], theirs["ndcg_cut_10"], atol=1e-12)
    in_top = np.where(theirs["recip_rank"] >= 0.1, theirs["recip_rank"], 0)  # ours looks at the first 10
    np.testing.assert_allclose(ours["retr/document_mrr/mrr10"], in_top, atol=1e-12)
    single = np.array([len(gold) == 1 for gold in golds])
    assert single.any()
    for k in (1, 4, 10, 100):
        np.testing.assert_allclose(fractional_recall(ids, golds, k), theirs[f"recall_{k}"], atol=1e-12)
        strict = ours[f"retr/document_recall/recall{k}"]
        np.testing.assert_array_equal(strict[single], theirs[f"recall_{k}"][single])
        brute = [set(gold) <= set(row[:k].tolist()) for row, gold in zip(ids, golds, strict=True)]
        np.testing.assert_array_equal(strict, brute)
    assert 0.3 < ours["retr/document_ndcg/ndcg10"].mean() < 0.9


@pytest.mark.slow
def test_all_metrics_equal_sentence_transformers_evaluator_on_faire(minilm, ray_cluster, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    from tests.evaluation.test_evaluate import score
    from tests.jobs import run

    documents_path, questions_path = DATA["faire"]
    if not documents_path.is_file():
        pytest.skip(f"{documents_path} is not there")
    words = ["--model", minilm, "--document_path", documents_path, "--eval_data_path", questions_path]
    run("evaluate", *words, "--output_dir", tmp_path / "out")
    documents = {}
    for _, document in read_records(str(documents_path), "documents"):
        documents.setdefault(str(document.passage_id), document.fmt_content)
    by_wording: dict[str, set[str]] = {}
    asked = []
    for _, record in read_records(str(questions_path), "questions"):
        for question in record.questions:
            key = " ".join(question.split()).casefold()
            by_wording.setdefault(key, set()).update(str(document.passage_id) for document in record.gold_docs)
            asked.append(question)
    evaluator = InformationRetrievalEvaluator(
        {str(number): question for number, question in enumerate(asked)},
        documents,
        {str(number): by_wording[" ".join(question.split()).casefold()] for number, question in enumerate(asked)},
        accuracy_at_k=[1, 4, 10, 100],
        precision_recall_at_k=[4, 100],
        write_csv=False,
    )
    theirs = evaluator(SentenceTransformer(minilm, device="cpu"))
    ours = score(tmp_path / "out")
    assert ours["test_retr/document_ndcg/ndcg10"] == pytest.approx(theirs["cosine_ndcg@10"], abs=1e-9)
    assert ours["test_retr/document_mrr/mrr10"] == pytest.approx(theirs["cosine_mrr@10"], abs=1e-9)
    assert ours["test_retr/document_accuracy/accuracy"] == pytest.approx(theirs["cosine_precision@4"], abs=1e-9)
    assert all(len(golds) == 1 for golds in by_wording.values())  # so that strict recall is its accuracy
    for k in (1, 4, 10, 100):
        assert ours[f"test_retr/document_recall/recall{k}"] == pytest.approx(theirs[f"cosine_accuracy@{k}"], abs=1e-9)
