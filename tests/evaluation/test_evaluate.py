"""Whole runs of jobs/evaluate.py and jobs/embed.py on a real cluster: what users get, and what they are told."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from rqa_ray.corpus_settings import EvaluateSettings
from rqa_ray.data.formats import parse_document
from rqa_ray.data.records import good_records
from rqa_ray.errors import InputError
from rqa_ray.evaluation.evaluate import evaluate
from rqa_ray.evaluation.metrics import retrieval_metrics
from rqa_ray.evaluation.predictions import read_predictions
from tests.jobs import kill_half_way, logged_shards, refused, run

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def flags(files, tiny_model) -> list[str]:
    return [
        *("--embedding_model_name_or_path", tiny_model, "--document_path", files["full_dataset_file_path"]),
        *("--eval_data_path", files["test_file"], "--max_seq_length", "32"),
    ]


@pytest.fixture(scope="module")
def evaluated(ray_cluster, flags, files, tmp_path_factory) -> Path:
    """The output folder of an evaluation."""
    folder = tmp_path_factory.mktemp("evaluate") / "out"
    run("evaluate", *flags, "--output_dir", folder, "--compare", "--weight_data_path", files["eval_file"])
    return folder


def predictions(folder: Path) -> list[dict]:
    return read_predictions(folder, "test")


def score(folder: Path) -> dict:
    return json.loads((folder / "score.json").read_text())


def test_scores_are_the_metrics_of_the_predictions_with_intervals(evaluated):
    lines, scores = predictions(evaluated), score(evaluated)
    ranked = np.array([[parse_document(doc).passage_id for doc in line["retrieved_docs"]] for line in lines])
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    for name, value in retrieval_metrics(ranked, golds).items():
        if name.endswith("recall100"):  # the 10 passages of a question do not tell
            continue
        assert scores[f"test_{name}"] == pytest.approx(value)
        low, high = scores["intervals_95"][f"test_{name}"]
        assert low <= value <= high
    assert (scores["retriever"], scores["questions"], scores["passages"]) == ("dense", 24, 60)
    assert scores["test_retr/latency/avg_latency"] > 0
    assert all(line["retrieved_docs"][0]["score"] >= line["retrieved_docs"][-1]["score"] for line in lines)


def test_the_other_retrievers_stand_beside_it(evaluated):
    compare = score(evaluated)["compare"]
    assert list(compare) == ["bm25", "hybrid"] and 0 <= compare["hybrid"]["weight"] <= 1
    # Questions are words of their passages: BM25 finds them, a random model does not.
    assert compare["bm25"]["test_retr/document_recall/recall4"] > score(evaluated)["test_retr/document_recall/recall4"]
    report = (evaluated / "report.html").read_text()
    assert "hybrid against dense: +" in report and "test: bm25 is better than dense: " in report


def test_training_finds_the_same_before_its_first_step(evaluated, one_worker):
    history = json.loads((one_worker / "trainer_state.json").read_text())["log_history"]
    before = next(record for record in history if record["step"] == 0)
    for name, value in score(evaluated).items():
        if name.startswith("test_") and "latency" not in name:
            assert before[name] == pytest.approx(value)


def test_the_hybrid_of_a_trained_model_is_that_of_its_summary(ray_cluster, one_worker, flags, tmp_path, capsys):
    words = [*flags[2:], "--model", one_worker, "--retriever_type", "hybrid", "--output_dir", tmp_path / "out"]
    run("evaluate", *words)
    stored, found = json.loads((one_worker / "hybrid.json").read_text()), score(tmp_path / "out")
    assert found["weight"] == stored["weight"]
    said = f"hybrid: {found['weight']:g} of the embeddings' z-scores and {1 - found['weight']:g} of BM25's"
    assert f"{said}, the weight stored with the model" in capsys.readouterr().out
    for name, value in stored["test"]["hybrid"].items():
        assert found[f"test_{name}"] == pytest.approx(value)


def test_embeddings_are_cut_to_the_dimensions_that_the_model_was_trained_for(
    ray_cluster, flags, tiny_model, files, tmp_path, capsys
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "all_args.json").write_text('{"matryoshka_dims": [32, 8]}')
    run("evaluate", "--model", model, *flags[2:], "--output_dir", tmp_path / "out")
    said, scores, lines = capsys.readouterr().out, score(tmp_path / "out"), predictions(tmp_path / "out")
    encoder = SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=8)
    encoder.max_seq_length = 32
    documents = {document.passage_id: document for document in good_records([flags[3]], "documents")}
    corpus = encoder.encode([one.fmt_content for one in documents.values()], normalize_embeddings=True)
    asked = encoder.encode([line["question"] for line in lines], normalize_embeddings=True)
    ranked = np.array([*documents])[np.argsort(-asked @ corpus.T, axis=1, kind="stable")]
    golds = [[parse_document(doc).passage_id for doc in line["gold_docs"]] for line in lines]
    expected = retrieval_metrics(ranked[:, :10], golds)
    for label in ("document_recall/recall4", "document_ndcg/ndcg10"):
        name = f"test_retr/{label}"
        assert scores[f"{name}_dim8"] == pytest.approx(expected[f"retr/{label}"], abs=1e-6)
        assert scores[f"{name}_dim32"] == scores[name] and scores["intervals_95"][f"{name}_dim8"][0] <= 1
    recall = scores["test_retr/document_recall/recall4_dim8"]
    assert f"dense, cut to 8 dimensions: recall@4 {recall:.3f}  0." in said


def test_the_same_command_again_encodes_nothing_and_finds_the_same(evaluated, flags, files, capfd, tmp_path):
    folder = shutil.copytree(evaluated, tmp_path / "out")
    log = (folder / "embeddings" / "shards.jsonl").read_text()
    config = json.loads((folder / "all_args.json").read_text())
    config["output_dir"] = str(folder)
    (folder / "all_args.json").write_text(json.dumps(config))
    run("evaluate", folder / "all_args.json", "--use_cpu", "--overwrite_output_dir")
    config["use_cpu"] = True
    assert json.loads((folder / "all_args.json").read_text()) == config
    capfd.readouterr()
    run("evaluate", folder / "all_args.json", "--json")
    said = capfd.readouterr()
    assert "embeddings of 60 passages are there already" in said.err
    result = json.loads(said.out)
    assert result["report"] == str(folder / "report.html") and result["report"] in result["files"]
    assert {Path(file) for file in result["files"]} == {path for path in folder.iterdir() if path.is_file()}
    of_dense = result["metrics"]["dense"]
    assert of_dense["test_retr/document_ndcg/ndcg10"] == score(folder)["test_retr/document_ndcg/ndcg10"]
    assert (folder / "embeddings" / "shards.jsonl").read_text() == log
    first, second = score(evaluated), score(folder)
    first.pop("test_retr/latency/avg_latency"), second.pop("test_retr/latency/avg_latency")
    assert first == second and predictions(evaluated) == predictions(folder)


def test_an_earlier_run_is_compared_question_by_question(evaluated, flags, tmp_path, capsys):
    words = [*flags, "--output_dir", tmp_path / "out", "--retriever_type", "bm25", "--compare", evaluated]
    run("evaluate", *words)
    said = capsys.readouterr().out
    assert f"{evaluated} against bm25, recall@4: -" in said and "95% interval" in said
    assert not (tmp_path / "out" / "embeddings").exists()
    theirs = score(tmp_path / "out")["compare"][str(evaluated)]
    assert theirs["test_retr/document_ndcg/ndcg10"] == pytest.approx(
        score(evaluated)["test_retr/document_ndcg/ndcg10"]
    )


def test_results_of_other_arguments_are_not_replaced_unasked(evaluated, flags, capsys):
    said = refused(capsys, "evaluate", *flags, "--output_dir", evaluated, "--bf16")
    assert said == (
        f"error: --output_dir {evaluated}: has results of other arguments; choose another, or --overwrite_output_dir\n"
    )


def test_embeddings_of_another_model_are_not_used(evaluated, flags, capsys, tmp_path):
    words = [*flags, "--query_prefix", "q: ", "--embeddings_path", evaluated / "embeddings", "--output_dir"]
    said = refused(capsys, "evaluate", *words, tmp_path / "out")
    assert "has embeddings of another model or other settings; choose another folder" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--document_path", "missing.jsonl"], "--document_path missing.jsonl: no such file"),
        (["--eval_data_path", "missing.jsonl"], "--eval_data_path missing.jsonl: no such file"),
        (["--embedding_model_name_or_path", "./missing"], "./missing: no such model folder"),
        (["--compare", "missing"], "--compare missing: neither dense, bm25, hybrid nor a folder with"),
        (["--num_workers", "9", "--cpus_per_worker", "1"], "--num_workers 9: needs 9 workers with 1 CPU each"),
        (["--weight_data_path", "{test_file}"], "--eval_data_path names this file too; pass other questions"),
        (["--weight_data_path", "{eval_file}", "--hybrid_weight", "1"], "the weight that --hybrid_weight gives"),
        (["--max_seq_length", "2"], "--max_seq_length 2: has to be at least 4"),
        (["--hybrid_weight", "0.3"], "--hybrid_weight 0.3: no effect without --retriever_type hybrid"),
        (["--matryoshka_dims", "16", "33"], "--matryoshka_dims 33: the model's embeddings have 32 dimensions"),
        (["--matryoshka_dims", "16", "--retriever_type", "bm25"], "--matryoshka_dims 16: no effect without"),
        (["--retriever_type", "bm52"], "--retriever_type bm52: did you mean bm25? choose one of dense"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(ray_cluster, flags, files, change, message, capsys, tmp_path):
    change = [word.format(**files) for word in change]
    said = refused(capsys, "evaluate", *flags, "--output_dir", tmp_path / "out", *change)
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dir": "{file}"}, "--output_dir {file}: cannot be a folder (Not a directory)"),
        ({"output_dir": "{file}/x"}, "--output_dir {file}/x: cannot be a folder (Not a directory)"),
        ({"output_dir": "s3://bucket/x"}, "--output_dir s3://bucket/x: a URI; this job writes to local folders only"),
        ({"embeddings_path": "foo://x"}, "foo://x: cannot be opened (Unrecognized filesystem type"),
        ({"embeddings_path": "{file}"}, "{file}: cannot be opened ("),
        ({"embeddings_path": "{file}/x"}, "{file}/x: cannot be opened ("),
        ({"embeddings_path": "{folder}"}, "{folder}: has files that are no embeddings (all_args.json)"),
        ({"output_dir": "{folder}"}, "{folder}/all_args.json: not JSON ("),
        ({"document_path": "{folder}/documents.jsonl", "output_dir": "{folder}"}, "has the input {folder}/documents"),
        (
            {"output_dir": "{earlier}"},
            "{earlier}: has test-predictions.jsonl, which no finished run of this job wrote",
        ),
        (
            {"compare": "{earlier}", "output_dir": "{earlier}", "overwrite_output_dir": "yes"},
            "{earlier}: has the input {earlier}/test-predictions",
        ),
    ],
)
def test_a_place_where_nothing_can_be_written_is_found_before_ray_starts(
    tiny_model, files, tmp_path, monkeypatch, change, message
):
    places = {name: tmp_path / name for name in ("folder", "earlier", "file")}
    folder = places["folder"]
    folder.mkdir()
    places["earlier"].mkdir()
    (places["earlier"] / "test-predictions.jsonl").write_text("")
    places["file"].write_text("")
    (folder / "all_args.json").write_text("{")
    shutil.copy(files["full_dataset_file_path"], folder / "documents.jsonl")
    monkeypatch.setattr("rqa_ray.evaluation.evaluate.connect", lambda: pytest.fail("Ray is started"))
    given = {
        "embedding_model_name_or_path": tiny_model,
        "document_path": files["full_dataset_file_path"],
        "eval_data_path": files["test_file"],
        "output_dir": str(tmp_path / "out"),
        **{flag: value.format(**places) for flag, value in change.items()},
    }
    lists = {flag: [given[flag]] for flag in ("document_path", "eval_data_path", "compare") if flag in given}
    with pytest.raises(InputError, match=re.escape(message.format(**places))):
        evaluate(EvaluateSettings(**given | lists))
    assert sorted(path.name for path in folder.iterdir()) == ["all_args.json", "documents.jsonl"]


def test_weights_that_are_missing_are_one_line_and_leave_nothing(ray_cluster, flags, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(flags[1], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    words = ["--model", model, "--document_path", flags[3], "--output_dir", tmp_path / "embeddings"]
    said = refused(capsys, "embed", *words)
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {model}: weights are missing: encoder.layer.1.output.dense.weight; pass a folder")
    assert not (tmp_path / "embeddings").exists()


def test_embeddings_can_be_made_beforehand_with_an_index_and_in_less_precision(
    flags, files, evaluated, tmp_path, capsys
):
    faiss = pytest.importorskip("faiss")
    model, documents, made = flags[1], files["full_dataset_file_path"], tmp_path / "embeddings"
    words = ["--model", model, "--document_path", documents, "--max_seq_length", "32", "--output_dir", made]
    run("embed", *words, "--index", "--precision", "int8")
    index = faiss.read_index(str(made / "index.faiss"))
    assert index.ntotal == 60
    run("evaluate", *flags, "--embeddings_path", made, "--output_dir", tmp_path / "out")
    assert "embeddings of 60 passages are there already" in capsys.readouterr().out
    assert not (tmp_path / "out" / "embeddings").exists() and not list(made.glob("questions*"))
    first, second = score(evaluated), score(tmp_path / "out")
    assert second["test_retr/document_ndcg/ndcg10"] == pytest.approx(first["test_retr/document_ndcg/ndcg10"], abs=0.1)
    said = refused(capsys, "embed", *words)
    assert "has embeddings of another --precision; choose another folder" in said


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was_and_encodes_each_shard_once(evaluated, flags, tmp_path):
    folder = tmp_path / "out"
    log, words = folder / "embeddings" / "shards.jsonl", [*flags, "--output_dir", str(folder)]
    done = kill_half_way("evaluate", log, *words)
    assert not (folder / "score.json").exists()
    run("evaluate", *words)
    logged = logged_shards(log)
    assert logged[: len(done)] == done and len(set(logged)) == len(logged)
    assert predictions(folder) == predictions(evaluated)
