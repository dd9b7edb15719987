"""Encodes a corpus and ranks it for questions, with real Ray tasks and actors."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rqa_ray.corpus.shards import EmbeddingFolder, Shard
from rqa_ray.corpus.topk import RunningTopK, search_block
from rqa_ray.data.columns import Ragged
from rqa_ray.data.golds import Golds
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def spec(ray_cluster, tiny_model):
    from rqa_ray.retriever.encoder_settings import ModelSpec

    return ModelSpec(tiny_model, read_settings(tiny_model, max_seq_length=40))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """300 distinct documents."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 9))) for _ in range(300)]
    return [Document(text, "", {"source": f"doc/{number}"}) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def paths(documents, tmp_path_factory) -> list[str]:
    """The documents in a plain file, a compressed file and many small files; some documents occur twice."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps(document.to_dict()) + "\n" for document in documents]
    (folder / "a.jsonl").write_text("".join([*lines[:150], lines[3], "\n", lines[149]]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join([*lines[150:240], *lines[:30]]).encode()))
    small = [folder / f"c{number:02d}.jsonl" for number in range(20)]
    for number, path in enumerate(small):
        path.write_text("".join([lines[0], *lines[240 + 3 * number : 243 + 3 * number]]))
    return [str(path) for path in (folder / "a.jsonl", folder / "b.jsonl.gz", *small)]


@pytest.fixture(scope="module")
def plan(ray_cluster, paths):
    from rqa_ray.corpus.encode import plan_corpus

    return plan_corpus(paths)


@pytest.fixture(scope="module")
def workers(ray_cluster):
    from rqa_ray.cluster.workers import Workers

    return Workers(2, 1, False)


@pytest.fixture(scope="module")
def questions(spec) -> Questions:
    texts = [" ".join(WORDS[i : i + 3]) for i in range(12)] * 6
    rows = TextTokenizer.load(spec).questions(texts)
    import pyarrow as pa

    tokens = Ragged([pa.array([row.tolist() for row in rows], pa.list_(pa.int32()))], np.arange(len(rows)))
    return Questions(tokens, Golds(np.zeros(len(rows), np.int64), np.arange(len(rows) + 1)))


@pytest.fixture(scope="module")
def encoded(plan, questions, spec, workers, tmp_path_factory) -> tuple[EmbeddingFolder, list[str]]:
    """A complete folder, and the names of the question shards."""
    from rqa_ray.corpus.encode import encode_corpus, text_shards

    folder = EmbeddingFolder(str(tmp_path_factory.mktemp("encoded") / "embeddings"))
    folder.start({"shards": plan.shards})
    tables = text_shards(questions.tokens, folder)
    encode_corpus(plan, folder, tables, spec, workers)
    return folder, [table["name"][0].as_py() for table in tables]


def encoded_here(spec, texts: list[str]) -> torch.Tensor:
    return Embedder.load(spec).passages(texts)


def test_the_distinct_passages_have_places_in_document_order(plan, documents):
    assert plan.passage_ids.tolist() == [document.passage_id for document in documents]
    assert plan.num_documents == 300 + 2 + 30 + 20
    assert list(plan.documents()) == documents
    assert plan.describe() == "corpus 300 passages (52 duplicates left out)"


def test_shards_cover_the_places_once(plan):
    assert [shard.first for shard in plan.shards] == np.cumsum([0, *(s.rows for s in plan.shards)])[:-1].tolist()
    assert sum(shard.rows for shard in plan.shards) == 300 and len(plan.shards) == 5
    assert len({shard.name for shard in plan.shards}) == 5


def test_ranges_of_large_files_and_groups_of_small_ones_make_the_same_plan(paths, plan, monkeypatch):
    from rqa_ray.corpus import plan as corpus_plan
    from rqa_ray.corpus.encode import plan_corpus

    monkeypatch.setattr(corpus_plan, "RANGE_BYTES", 2_000)
    monkeypatch.setattr(corpus_plan, "FEWEST_ROWS", 7)
    other = plan_corpus(paths)
    assert len(other.groups) > len(plan.groups) == 1 and len(other.shards) > 20
    assert other.passage_ids.tolist() == plan.passage_ids.tolist() and other.digest == plan.digest
    assert [document.passage_id for document in other.documents()] == plan.passage_ids.tolist()


def test_a_bad_line_is_named_before_anything_is_encoded(ray_cluster, paths, tmp_path):
    from rqa_ray.corpus.encode import plan_corpus

    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"page_content": "right"}\n{"content": "wrong"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2: a document needs `page_content`"):
        plan_corpus([paths[0], str(bad), paths[1]])


@pytest.mark.parametrize("change", ["shorter", "longer", "bad"])
def test_files_that_changed_since_the_plan_are_not_taken_for_the_same(paths, tmp_path, change):
    from rqa_ray.corpus.plan import kept_documents

    changed = tmp_path / "a.jsonl"
    lines = Path(paths[0]).read_text().splitlines()
    added = {"shorter": lines[:-1], "longer": [*lines, lines[0]], "bad": [*lines[:-1], "{}"]}[change]
    changed.write_text("\n".join(added))
    with pytest.raises(InputError, match="changed while it was read"):
        list(kept_documents([(str(changed), 0, None)], np.ones(152, bool)))
    assert len(list(kept_documents([(paths[0], 0, None)], np.ones(152, bool)))) == 152


def test_a_file_that_changes_after_the_plan_is_one_line_and_no_shard(ray_cluster, spec, workers, tmp_path):
    from rqa_ray.corpus.encode import encode_corpus, plan_corpus

    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"page_content": word, "metadata": {"source": number}}) for number, word in enumerate(WORDS)]
    path.write_text("\n".join(lines))
    plan = plan_corpus([str(path)])
    path.write_text("\n".join([*lines[:-1], lines[-1].replace("tau", "new")]))
    folder = EmbeddingFolder(str(tmp_path / "embeddings"))
    with pytest.raises(InputError) as caught:
        encode_corpus(plan, folder, [], spec, workers)
    message = f"{path}: this file, or one after it, changed while it was read; run the job again"
    assert str(caught.value) == message
    assert not folder.done()


def test_saved_embeddings_are_the_encoders(encoded, spec, documents):
    folder, _ = encoded
    assert folder.is_complete()
    blocks = list(folder.blocks([shard.name for shard in folder.shards]))
    found = torch.cat([block.embeddings for block in blocks])
    expected = encoded_here(spec, [document.fmt_content for document in documents])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert folder.documents(np.array([5, 299])) == {place: documents[place].to_dict() for place in (5, 299)}
    assert folder.passage_ids().tolist() == [document.passage_id for document in documents]


def test_shards_that_are_there_are_not_encoded_again(encoded, plan, questions, spec):
    from rqa_ray.cluster.workers import Workers
    from rqa_ray.corpus.encode import encode_corpus, text_shards

    folder, names = encoded
    before = {path: path.stat().st_mtime_ns for path in Path(folder.path).glob("*.parquet")}
    lost = ["passages-000001", "passages-000003", names[0]]
    for name in lost:
        (Path(folder.path) / f"{name}.parquet").unlink()
    seen = []
    tables = [table for table in text_shards(questions.tokens, folder) if table["name"][0].as_py() in lost]
    encode_corpus(plan, folder, tables, spec, Workers(1, 1, False), on_shard=lambda name, *_: seen.append(name))
    assert sorted(seen) == sorted(lost)
    after = {path: path.stat().st_mtime_ns for path in Path(folder.path).glob("*.parquet")}
    assert {path.stem for path in after if before[path] != after[path]} == set(lost)
    logged = [json.loads(line)["shard"] for line in (Path(folder.path) / "shards.jsonl").read_text().splitlines()]
    assert len(logged) == len(before) + len(lost)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_ranking_is_the_same_for_any_number_of_workers(encoded, num_workers):
    from rqa_ray.cluster.workers import Workers
    from rqa_ray.corpus.sharded_search import search

    folder, names = encoded
    scores, positions, seconds = search(folder, folder, names, 50, Workers(num_workers, 1, False), normalize=True)
    asked = torch.cat([block.embeddings for block in folder.blocks(names)])
    topk = RunningTopK(72, 50)
    for block in folder.blocks([shard.name for shard in folder.shards]):
        search_block(asked, block.embeddings, block.positions, topk)
    expected = topk.result()
    assert np.array_equal(scores, expected[0].numpy()) and np.array_equal(positions, expected[1].numpy())
    assert np.array_equal(positions[:12], positions[12:24]) and 0 < seconds < 60


def test_planted_ties_rank_in_document_order_for_any_number_of_workers(ray_cluster, tmp_path):
    from rqa_ray.cluster.workers import Workers
    from rqa_ray.corpus.sharded_search import search

    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(400, 16, generator=generator)
    embeddings[torch.randperm(400, generator=generator)[:200]] = embeddings[7].clone()
    asked = torch.randn(5, 16, generator=generator)
    folder = EmbeddingFolder(str(tmp_path))
    shards = [Shard(f"passages-{i}", 50 * i, 50) for i in range(8)]
    folder.start({"shards": shards})
    for shard in shards:
        part = embeddings[shard.first : shard.first + 50]
        folder.write(shard.name, shard.first, range(50), [""] * 50, part)
    folder.write("questions-0", 0, [0] * 5, [""] * 5, asked)
    exact = (asked.double()[:, None] * embeddings.double()).sum(2).float()
    expected = exact.argsort(dim=1, descending=True, stable=True)[:, :100]
    for num_workers in (1, 2, 4):
        positions = search(folder, folder, ["questions-0"], 100, Workers(num_workers, 1, False), normalize=False)[1]
        assert np.array_equal(positions, expected.numpy())


def test_duplicates_are_the_same_as_in_training(plan, paths, ray_cluster, spec):
    from rqa_ray.data.readers import read_inputs

    corpus = Corpus.from_tables(read_inputs({"corpus": paths}, spec)["corpus"].tables())
    assert corpus.passage_ids.tolist() == plan.passage_ids.tolist()
