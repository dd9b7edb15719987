"""Saved embeddings are read as they were written, in document order, and a shard is complete or absent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from rqa_ray.corpus import shards
from rqa_ray.corpus.shards import EmbeddingFolder, Shard, fingerprint
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import EncoderSettings

EMBEDDINGS = normalize(torch.randn(250, 24, generator=torch.Generator().manual_seed(0)), dim=1)
SHARDS = [Shard("passages-000000", 0, 100), Shard("passages-000001", 100, 100), Shard("passages-000002", 200, 50)]


def write(folder: EmbeddingFolder, shard: Shard, precision: str = "fp32") -> None:
    rows = range(shard.first, shard.first + shard.rows)
    documents = [f'{{"page_content": "text {row}"}}' for row in rows]
    folder.write(shard.name, shard.first, [row * 7 for row in rows], documents, EMBEDDINGS[list(rows)], precision)


@pytest.fixture
def folder(tmp_path) -> EmbeddingFolder:
    folder = EmbeddingFolder(str(tmp_path / "embeddings"))
    folder.start({"shards": SHARDS})
    return folder


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0), ("fp16", 5e-4), ("int8", 5e-3)])
@pytest.mark.parametrize("rows_per_block", [1, 150, 10_000])
def test_embeddings_come_back_in_order(folder, precision, error, rows_per_block, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_BLOCK", rows_per_block)
    for shard in reversed(SHARDS):
        write(folder, shard, precision)
    blocks = list(folder.blocks([shard.name for shard in SHARDS], normalize=True))
    assert torch.cat([block.positions for block in blocks]).tolist() == list(range(250))
    found = torch.cat([block.embeddings for block in blocks])
    assert found.dtype == torch.float32
    assert (found - EMBEDDINGS).abs().max() <= error
    torch.testing.assert_close(found.norm(dim=1), torch.ones(250))
    assert folder.passage_ids().tolist() == [row * 7 for row in range(250)]


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float"), ("fp16", "halffloat"), ("int8", "int8")])
def test_any_parquet_reader_finds_fixed_size_lists_with_ids(folder, precision, kind):
    write(folder, SHARDS[0], precision)
    schema = pq.read_table(f"{folder.path}/passages-000000.parquet").schema
    names = ["position", "passage_id", "document", "embedding", *(["scale"] if precision == "int8" else [])]
    assert schema.names == names
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: {kind}>[24]"


def test_the_documents_of_some_positions_are_read(folder):
    for shard in SHARDS:
        write(folder, shard)
    found = folder.documents(np.array([[249, 3], [100, 3]]))
    assert found == {place: {"page_content": f"text {place}"} for place in (3, 100, 249)}


def test_a_folder_is_complete_when_all_its_shards_are_there(folder):
    assert not EmbeddingFolder(folder.path + "-other").is_complete()
    for shard in SHARDS:
        assert not folder.is_complete()
        write(folder, shard)
    assert folder.is_complete() and folder.done() == {shard.name for shard in SHARDS}
    folder.clear()
    assert not folder.done() and folder.manifest() is None


def test_clearing_deletes_what_the_manifest_names_and_nothing_else(folder):
    write(folder, SHARDS[0])
    folder.log("passages-000000", 100, 1.0)
    (Path(folder.path) / "index.faiss").write_text("ours")
    theirs = [Path(folder.path) / name for name in ("documents.parquet", "passages-000009.parquet", "notes.txt")]
    for path in theirs:
        path.write_text("theirs")
    EmbeddingFolder(folder.path).clear()
    assert sorted(Path(folder.path).iterdir()) == sorted(theirs)
    EmbeddingFolder(folder.path).clear()
    assert sorted(Path(folder.path).iterdir()) == sorted(theirs)


def test_a_folder_of_other_files_is_refused_and_an_empty_one_is_not(folder, tmp_path):
    EmbeddingFolder(folder.path).check_own()
    EmbeddingFolder(str(tmp_path / "missing")).check_own()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.DS_Store").write_text("")
    EmbeddingFolder(str(tmp_path / "mine")).check_own()
    (tmp_path / "mine/documents.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"mine: has files that are no embeddings \(documents\.parquet\); choose"):
        EmbeddingFolder(str(tmp_path / "mine")).check_own()


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        ("{", "Expecting property name"),
        ("[]", "no list of shards in it"),
        ("{}", "no list of shards in it"),
        ('{"name": "a web page", "icons": []}', "no list of shards in it"),
        ('{"shards": [["../../theirs", 0, 1]]}', r"no shard is \['../../theirs', 0, 1\]"),
        ('{"shards": [["passages-0", 0]]}', "no shard is"),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_a_manifest_of_another_program_is_refused(tmp_path, manifest, what):
    (tmp_path / "manifest.json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(InputError, match=f"its manifest.json is not about embeddings \\({what}.*; choose another"):
        EmbeddingFolder(str(tmp_path)).manifest()
    with pytest.raises(InputError, match=r"manifest\.json"):
        EmbeddingFolder(str(tmp_path)).clear()


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("foo://x", tmp_path / "file", tmp_path / "file/x", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=rf"^{place}: cannot be opened \("):
            EmbeddingFolder(str(place)).check_own()


@pytest.mark.parametrize("content", [b"", b"PAR1 not that", None])
def test_a_shard_that_is_damaged_or_lost_is_one_line(folder, content):
    write(folder, SHARDS[0])
    path = Path(folder.path) / "passages-000000.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(folder.blocks(["passages-000000"]))
    assert str(caught.value).startswith(f"{path}: cannot be read (") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; delete it and embed again, which makes it anew")


def test_a_write_that_is_cut_off_leaves_no_shard(folder, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("rqa_ray.places.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(folder, SHARDS[0])
    assert not folder.done()


def test_the_log_knows_how_long_shards_took(folder):
    folder.log("a", 3, 1.25)
    folder.log("b", 3, 0.5)
    assert folder.logged_seconds(["a", "b", "c"]) == 1.75


def test_the_fingerprint_tells_weights_and_settings_apart(tiny_model, minilm):
    settings = EncoderSettings()
    assert fingerprint(tiny_model, settings) == fingerprint(tiny_model, EncoderSettings())
    assert fingerprint(tiny_model, settings) != fingerprint(tiny_model, EncoderSettings(query_prefix="query: "))
    assert fingerprint(tiny_model, settings) != fingerprint(minilm, settings)


def test_the_fingerprint_takes_the_weights_of_all_modules_and_no_results_beside_them(tiny_model, tmp_path):
    folder, settings = shutil.copytree(tiny_model, tmp_path / "model"), EncoderSettings()
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{path[2:]}"} for path in ("", "1_Pooling", "2_Dense")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"one")
    before = fingerprint(str(folder), settings)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "embeddings").mkdir()
    (folder / "embeddings" / "passages-0.parquet").write_bytes(b"many")
    assert fingerprint(str(folder), settings) == before
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"two")
    assert fingerprint(str(folder), settings) != before
