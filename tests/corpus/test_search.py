"""A person asks and gets the passages that a search over everything would give, without Ray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rqa_ray.command_line import parse
from rqa_ray.corpus import search as ask
from rqa_ray.corpus.bm25 import HYBRID_FILE, Bm25, Hybrid
from rqa_ray.corpus.model import Model
from rqa_ray.corpus.search import Hit, Searcher, search, show
from rqa_ray.corpus.shards import EmbeddingFolder, Shard, fingerprint
from rqa_ray.corpus_settings import SearchSettings
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError
from rqa_ray.job_output import plain
from rqa_ray.places import file_content
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings

ROOT = Path(__file__).parents[2]
QUESTION = "alpha beta pi"


@pytest.fixture(scope="module")
def model(tiny_model) -> Model:
    return Model("tiny", ModelSpec(tiny_model, read_settings(tiny_model)))


@pytest.fixture(scope="module")
def corpus(files) -> tuple[str, list[Document]]:
    path = files["full_dataset_file_path"]
    return path, [record for _, record in read_records(path, "documents")]


@pytest.fixture(scope="module")
def expected(model, corpus) -> list[tuple[float, str]]:
    """Returns score and source of all passages, best first, each encoded alone."""
    embedder = Embedder.load(model.spec)
    asked = embedder.questions([QUESTION])[0]
    found = []
    for document in corpus[1]:
        score = float(embedder.passages([document.fmt_content])[0] @ asked)
        found.append((score, document.metadata["source"]))
    return sorted(found, reverse=True)


@pytest.fixture(scope="module")
def saved(model, corpus, tmp_path_factory) -> EmbeddingFolder:
    """The embeddings that jobs/embed.py writes."""
    path, documents = corpus
    embeddings = Embedder.load(model.spec).passages([document.fmt_content for document in documents])
    folder = EmbeddingFolder(str(tmp_path_factory.mktemp("saved")))
    shards = [Shard("passages-0", 0, 40), Shard("passages-1", 40, 20)]
    folder.start(
        {
            "model": "tiny",
            "fingerprint": fingerprint(model.spec.folder, model.spec.settings),
            "documents": [file_content(path)],
            "shards": shards,
        }
    )
    for name, first, rows in shards:
        part = slice(first, first + rows)
        texts = [json.dumps(document.to_dict()) for document in documents[part]]
        folder.write(name, first, np.zeros(rows, np.int64), texts, embeddings[part])
    return folder


def check(hits: list[Hit], expected: list[tuple[float, str]]) -> None:
    assert [hit.document.metadata["source"] for hit in hits] == [source for _, source in expected[: len(hits)]]
    torch.testing.assert_close(
        [hit.score for hit in hits], [score for score, _ in expected[: len(hits)]], atol=1e-5, rtol=0
    )


def test_documents_are_encoded_when_nothing_is_saved(model, corpus, expected):
    searcher = Searcher(model, [corpus[0]], None)
    check(searcher.search(QUESTION, 7), expected)
    assert len(searcher.search(QUESTION, 100)) == 60
    assert searcher.source == "60 passages, encoded now; jobs/embed.py saves them"


@pytest.mark.parametrize("held", [0, 10**9], ids=["read again", "held"])
def test_saved_embeddings_answer_without_the_documents(model, saved, expected, held, monkeypatch):
    monkeypatch.setattr(ask, "HELD_BYTES", held)
    searcher = Searcher(model, None, saved.location)
    check(searcher.search(QUESTION, 7), expected)
    assert searcher.source == f"60 saved embeddings in {saved.location}"


def test_saved_embeddings_beside_the_model_are_found(model, saved, corpus, expected, tmp_path):
    folder = shutil.copytree(model.spec.folder, tmp_path / "model")
    shutil.copytree(saved.location, folder / "embeddings")
    here = Model("here", ModelSpec(str(folder), model.spec.settings))
    check(Searcher(here, [corpus[0]], None).search(QUESTION, 3), expected)
    assert "saved embeddings" in Searcher(here, None, None).source


def test_a_hybrid_adds_bm25_by_the_weight_of_the_model_unless_another_is_given(model, saved, corpus, tmp_path):
    folder = shutil.copytree(model.spec.folder, tmp_path / "model")
    words = ["--model", str(folder), "--embeddings_path", saved.location, "--retriever_type", "hybrid", QUESTION]

    def found(*more: str) -> tuple[list[str], str]:
        answer = search(parse(SearchSettings, [*words, *more], free_word="question"))
        return [hit.document.metadata["source"] for hit in answer.hits], answer.source

    texts, embedder = [document.fmt_content for document in corpus[1]], Embedder.load(model.spec)
    ranked = Hybrid(Bm25(texts), embedder.passages(texts)).rank(
        [QUESTION], embedder.questions([QUESTION]), [0.2, 0.5, 1.0], 5
    )
    expected = {w: [corpus[1][place].metadata["source"] for place in rows[0]] for w, (_, rows) in ranked.items()}
    assert len({tuple(sources) for sources in expected.values()}) == 3
    none_stored = found()
    (folder / HYBRID_FILE).write_text('{"weight": 0.2}')
    stored = found()
    assert (none_stored[0], stored[0], found("--hybrid_weight", "1")[0]) == tuple(expected[w] for w in (0.5, 0.2, 1.0))
    assert none_stored[1].endswith(
        "hybrid: 0.5 of the embeddings' z-scores and 0.5 of BM25's, as the model has no weight"
    )
    assert stored[1].endswith(
        "hybrid: 0.2 of the embeddings' z-scores and 0.8 of BM25's, the weight stored with the model"
    )


def test_embeddings_of_something_else_are_refused_or_left_alone(model, saved, corpus, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"page_content": "something else"}\n')
    with pytest.raises(InputError, match="its embeddings belong to other documents"):
        Searcher(model, [str(other)], saved.location)
    changed = Model("tiny", ModelSpec(model.spec.folder, read_settings(model.spec.folder, max_seq_length=9)))
    with pytest.raises(InputError, match="belong to another model or other settings"):
        Searcher(changed, None, saved.location)
    with pytest.raises(InputError, match="no embeddings in it"):
        Searcher(model, None, str(tmp_path / "empty"))
    with pytest.raises(InputError, match="--document_path is missing"):
        Searcher(model, None, None)


def test_an_edit_is_found_whatever_size_and_time_say_and_a_touch_or_another_name_is_none(
    model, saved, corpus, tmp_path
):
    file = Path(shutil.copy(corpus[0], tmp_path / "documents.jsonl"))
    os.utime(file, ns=(1, 1))
    for name in (str(file), f"file://{file}"):
        assert "saved embeddings" in Searcher(model, [name], saved.location).source
    text = file.read_text()
    file.write_text(text.replace("alpha", "ahpla"))
    os.utime(file, ns=(1, 1))
    assert len(file.read_text()) == len(text) and file.read_text() != text
    with pytest.raises(InputError, match="an earlier version of these"):
        Searcher(model, [str(file)], saved.location)


@pytest.mark.parametrize("manifest", ["{", "[]", "{}", '{"shards": []}', '{"shards": [], "fingerprint": 1}'])
def test_a_folder_that_is_not_about_embeddings_is_refused_or_left_alone(model, corpus, tmp_path, manifest, capsys):
    folder = shutil.copytree(model.spec.folder, tmp_path / "model")
    (folder / "embeddings").mkdir()
    (folder / "embeddings/manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=f"{folder}/embeddings: its (manifest.json is not|embeddings belong to)"):
        Searcher(model, None, str(folder / "embeddings"))
    here = Model("here", ModelSpec(str(folder), model.spec.settings))
    assert "encoded now" in Searcher(here, [corpus[0]], None).source
    assert capsys.readouterr().err.count("note: ") == 1


def test_a_bad_document_is_named(model, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"page_content": "right"}\n[]\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2: a document has to be an object"):
        Searcher(model, [str(bad)], None)


def test_passages_are_shown_with_score_title_source_and_beginning():
    document = Document("word " * 100, "", {"source": "https://a.b/c", "title": "The title"})
    lines = show([Hit(0.51234, document), Hit(0.1, Document("short"))], highlight=False).splitlines()
    assert lines[0] == " 1. 0.512  The title" and lines[1] == "    https://a.b/c"
    assert lines[2].startswith("    word word") and any(line.endswith("...") for line in lines)
    assert lines[-2:] == [" 2. 0.100  passage", "    short"]
    assert show([Hit(0.1, Document("short", "", {"source": 0}))], highlight=False) == " 1. 0.100  0\n    0\n    short"
    assert "\033[1mThe title\033[0m" in show([Hit(0.5, document)], highlight=True)
    hostile = Document("\x1b[2J red \u202e", "", {"title": "\x1b]0;mine\x07", "source": "a\nb"})
    assert show([Hit(0.1, hostile)], highlight=False) == (
        " 1. 0.100  \\x1b]0;mine\\x07\n    a\\nb\n    \\x1b[2J red \\u202e"
    )


def test_the_job_answers_at_a_prompt_without_ray_what_it_answers_by_json(model, files):
    words = ["--model", model.spec.folder, "--document_path", files["full_dataset_file_path"], "--top_k", "2"]
    asked = parse(SearchSettings, [*words, QUESTION], free_word="question")
    found = plain(search(asked))
    assert found["question"] == QUESTION and len(found["retrieved_docs"]) == 2
    code = f"import sys, runpy; sys.modules['ray'] = None; sys.argv = ['search.py', *{words!r}]; "
    code += f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'jobs/search.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", code]
    typed = subprocess.run(command, input=f"{QUESTION}\n\n", capture_output=True, text=True, timeout=120)
    assert typed.returncode == 0, typed.stderr
    assert found["retrieved_docs"][0]["metadata"]["source"] in typed.stdout and typed.stdout.count(" s)") == 1


def test_a_weight_without_a_hybrid_is_refused(model, corpus):
    words = ["--model", model.spec.folder, "--document_path", corpus[0], "--hybrid_weight", "0.3", QUESTION]
    with pytest.raises(InputError, match=r"^--hybrid_weight 0\.3: no effect without --retriever_type hybrid$"):
        search(parse(SearchSettings, words, free_word="question"))
