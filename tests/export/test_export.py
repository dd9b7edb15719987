"""An exported model gives the embeddings of the original, and its table says what each form costs."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rqa_ray.corpus_settings import ExportSettings
from rqa_ray.errors import InputError
from rqa_ray.export.export import ExportResult, export
from rqa_ray.export.runtimes import RUNTIMES

INSTALLED = [
    name for name, runtime in RUNTIMES.items() if all(importlib.util.find_spec(module) for module in runtime.modules)
]
EMBEDDINGS = ["int8 embeddings", "binary embeddings", "binary passages"]


def settings(tiny_model: str, files: dict[str, str], output: Path, **more) -> ExportSettings:
    return ExportSettings(
        embedding_model_name_or_path=tiny_model,
        document_path=[files["full_dataset_file_path"]],
        eval_data_path=[files["test_file"]],
        output_dir=str(output),
        query_prefix="q: ",
        **more,
    )


@pytest.fixture(scope="module")
def exported(tiny_model, files, tmp_path_factory) -> ExportResult:
    """The result of an export to all runtimes that are installed."""
    return export(settings(tiny_model, files, tmp_path_factory.mktemp("export") / "out"))


def test_every_form_is_measured_beside_the_original(exported):
    files = [name for name in INSTALLED for name in RUNTIMES[name].files]
    assert [form.name for form in exported.forms] == ["original, fp32", "original, bf16", *files, *EMBEDDINGS]
    assert (exported.num_questions, exported.num_passages) == (24, 60)
    report = json.loads((Path(exported.output_dir) / "export.json").read_text())
    assert [form["metrics"] for form in report["forms"]] == [form.metrics for form in exported.forms]
    lines = exported.describe().splitlines()
    assert lines[0].split()[-5:] == ["recall@4", "nDCG@10", "passages/s", "MB", "cosine"]
    assert lines[-1].startswith(f"written: {exported.output_dir}/export.json, ")


def test_a_runtime_that_is_not_installed_is_named_with_the_command_that_installs_it(
    exported, tiny_model, files, tmp_path, monkeypatch
):
    monkeypatch.setattr("rqa_ray.errors.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'--runtimes onnx: needs onnx: pip install -e "\.\[onnx\]"'):
        export(settings(tiny_model, files, tmp_path / "out", runtimes=["onnx"]))
    assert not (tmp_path / "out").exists()
    found = export(settings(tiny_model, files, tmp_path / "out"))
    assert [form.name for form in found.forms] == ["original, fp32", "original, bf16", *EMBEDDINGS]
    assert found.notes[0] == 'not written: --runtimes onnx: needs onnx: pip install -e ".[onnx]"'


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_runtimes_find_what_the_original_finds(exported, runtime):
    if runtime not in INSTALLED:
        pytest.skip(f"needs {', '.join(RUNTIMES[runtime].modules)}")
    forms = {form.name: form for form in exported.forms}
    whole, int8 = (forms[name] for name in RUNTIMES[runtime].files)
    assert whole.cosine > 0.999 and int8.cosine > 0.98
    assert whole.metrics == pytest.approx(forms["original, fp32"].metrics, abs=0.1)
    assert int8.megabytes < whole.megabytes and whole.passages_per_second > 0
    for file in RUNTIMES[runtime].files.values():
        assert (Path(exported.output_dir) / file).is_file()


@pytest.mark.skipif("onnx" not in INSTALLED, reason="needs onnx, onnxscript and onnxruntime")
def test_the_onnx_file_takes_batches_of_any_size(exported, tiny_model):
    from sentence_transformers import SentenceTransformer

    folder = Path(exported.output_dir)
    model, run = SentenceTransformer(str(folder)), RUNTIMES["onnx"].open(folder / "onnx/model.onnx")
    for texts in (["one"], ["a", "three words here", "two words"]):
        inputs = model.tokenizer(texts, padding=True, return_tensors="np")
        mask = inputs["attention_mask"]
        tokens = run(inputs["input_ids"], mask) * mask[..., None]
        means = tokens.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(means, model.encode(texts), atol=1e-5)


def test_the_folder_is_a_model_of_sentence_transformers_with_the_prefixes_of_the_flags(exported):
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(exported.output_dir).prompts["query"] == "q: "


def test_a_folder_with_files_is_not_replaced(tiny_model, files, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(InputError, match="has files; choose another folder, or delete this one"):
        export(settings(tiny_model, files, tmp_path))


@pytest.mark.parametrize("asked", [None, ["onnx"]])
def test_a_runtime_that_fails_is_a_note_unless_a_flag_asks_for_it(tiny_model, files, tmp_path, monkeypatch, asked):
    def fails(folder: Path) -> None:
        raise RuntimeError("no such operator")

    runtime = replace(RUNTIMES["onnx"], modules=(), write=fails)
    monkeypatch.setattr("rqa_ray.export.export.RUNTIMES", {"onnx": runtime})
    monkeypatch.setattr("rqa_ray.export.export.write_onnx", lambda encoder, folder: None)
    given = settings(tiny_model, files, tmp_path / "out", runtimes=asked)
    if asked:
        with pytest.raises(InputError, match=r"^--runtimes onnx: no such operator$"):
            export(given)
        assert not (tmp_path / "out" / "export.json").exists()
    else:
        found = export(given)
        assert [form.name for form in found.forms] == ["original, fp32", "original, bf16", *EMBEDDINGS]
        assert found.notes[0] == "not written: --runtimes onnx: no such operator"


def records(path: Path, *golds: list[str], question: str = "?") -> str:
    lines = [{"question": question, "gold_docs": [{"text": text} for text in texts]} for texts in golds]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_questions_whose_golds_the_corpus_lacks_are_counted_and_refused_if_they_are_all(tiny_model, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a"}\n{"text": "b"}\n')
    given = {"full_dataset_file_path": str(corpus), "test_file": records(tmp_path / "t.jsonl", ["a", "lost"])}
    found = export(settings(tiny_model, given, tmp_path / "out", runtimes=[]))
    assert found.notes[0] == "warning: 1 questions have a gold that is missing from the corpus"
    given["test_file"] = records(tmp_path / "t.jsonl", ["lost"], ["lost too"])
    with pytest.raises(InputError, match="none of its gold passages is in"):
        export(settings(tiny_model, given, tmp_path / "out-2", runtimes=[]))
    given["test_file"] = records(tmp_path / "t.jsonl", ["a"], question=" ")
    with pytest.raises(InputError, match=r"t.jsonl: all its questions are empty"):
        export(settings(tiny_model, given, tmp_path / "out-3", runtimes=[]))
