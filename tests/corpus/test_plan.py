"""The plan of a corpus: the distinct passages, and their shards, in memory that hardly grows with the corpus."""

import json
import os
import time
import tracemalloc
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from rqa_ray.corpus.plan import CorpusPlan, Range, documents_digest
from rqa_ray.corpus.shards import EmbeddingFolder
from rqa_ray.corpus.topk import search_blocks
from rqa_ray.data.records import good_records
from rqa_ray.data.schema import text_hash
from rqa_ray.errors import InputError

GROUP = 65_536  # documents that one task reads


def plan_of(tmp_path: Path, *files: list[dict[str, str]]) -> CorpusPlan:
    """Writes each list of records to a file, and plans the files as one group each."""
    paths = [str(tmp_path / f"{number}.jsonl") for number in range(len(files))]
    for path, records in zip(paths, files, strict=True):
        Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))
    documents = [list(good_records([path], "documents")) for path in paths]
    ids = [np.array([document.passage_id for document in part], np.int64) for part in documents]
    hashes = [np.array([text_hash(document.fmt_content) for document in part], np.int64) for part in documents]
    ranges: list[list[Range]] = [[(path, 0, None)] for path in paths]
    return CorpusPlan(ranges, [len(part) for part in ids], ids, hashes)


def doc(text: str, source: str, title: str = "") -> dict[str, str]:
    return {"text": text, "source": source, "title": title}


def test_a_passage_of_several_groups_is_in_the_first_and_each_shard_has_a_digest_of_its_own_passages(tmp_path):
    many = [doc(f"text {number}", "many") for number in range(100)]
    plan = plan_of(tmp_path, [*many, many[3]], [many[5], doc("new", "a"), doc("new", "a")], [many[0]])
    assert (plan.num_documents, len(plan.passage_ids), plan.clash) == (105, 101, None)
    assert [int(group.keep.sum()) for group in plan.groups] == [100, 1, 0]
    assert [tuple(shard)[1:] for shard in plan.shards] == [(0, 64), (64, 36), (100, 1)]
    documents = list(plan.documents())
    assert [document.passage_id for document in documents] == plan.passage_ids.tolist()
    digests = [documents_digest(documents[first : first + rows]) for _, first, rows in plan.shards]
    assert [digest for group in plan.groups for digest in group.digests] == digests
    assert plan.digest == plan_of(tmp_path, [*many, doc("new", "a")]).digest


def test_a_passage_whose_text_differs_in_another_group_is_refused(tmp_path):
    plan_of(tmp_path, [doc("alpha", "a"), doc("beta", "b")], [doc("alpha", "a")]).refuse_clash()
    clash = plan_of(tmp_path, [doc("alpha", "a"), doc("beta", "b")], [doc("beta", "b")], [doc("alpha", "a", "T")])
    with pytest.raises(InputError, match=r"2\.jsonl:1: the same passage as in .*0\.jsonl:1 .* its own source$"):
        clash.refuse_clash()


def large_plan(number: int) -> CorpusPlan:
    """Plans `number` synthetic documents, whose ids and hashes come as from the tasks of `encode.plan_corpus`."""
    sizes = [min(GROUP, number - start) for start in range(0, number, GROUP)]

    def numbers(seed: int) -> Iterator[np.ndarray]:
        for group, size in enumerate(sizes):
            yield np.random.default_rng([seed, group]).integers(-(2**63), 2**63 - 1, size)

    return CorpusPlan([[("documents.jsonl", 0, None)]] * len(sizes), sizes, numbers(0), numbers(1))


def test_a_plan_is_made_in_12_bytes_a_passage_beside_20_megabytes():
    tracemalloc.start()
    plan = large_plan(10**6)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.passage_ids) == 10**6
    assert kept < 9 * 10**6 and peak < 12 * 10**6 + 20 * 10**6


def write_and_search(number: int, folder: str) -> dict[str, float]:
    """Plans synthetic passages, writes embeddings of 64 random numbers for them, and ranks them for 100 questions."""

    def memory() -> float:
        return psutil.Process().memory_info().rss / 2**20

    found, started = {"before_mb": memory()}, time.perf_counter()

    def note(name: str) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found.update(
            {f"{name}_mb": int(status["VmHWM"].split()[0]) / 1024, f"{name}_s": time.perf_counter() - started}
        )

    plan = large_plan(number)
    note("planned")
    saved = EmbeddingFolder(folder)
    saved.start({"shards": plan.shards})
    noise = torch.randn(2**16 + 8_192, 64)
    for shard in plan.shards:  # as the stub of an encoder would write them: no texts, slices of the same numbers
        start = shard.first * 7_919 % 2**16
        own = plan.passage_ids[shard.first : shard.first + shard.rows]
        saved.write(shard.name, shard.first, own, [""] * shard.rows, noise[start : start + shard.rows])
    note("written")
    names = [shard.name for shard in saved.shards]
    topk = search_blocks(torch.randn(100, 64), saved.blocks(names), 10, num_threads=2)
    note("searched")
    found["distinct"] = len(np.unique(plan.passage_ids[topk.result()[1].numpy()]))
    return found


@pytest.mark.slow
def test_millions_of_passages_are_planned_written_and_searched_in_less_than_a_gigabyte(tmp_path):
    """`SCALE_PASSAGES=20000000 pytest -m slow -s tests/corpus/test_plan.py` needs 6 GB of disk and takes minutes."""
    number = int(os.environ.get("SCALE_PASSAGES", 2_000_000))
    with get_context("spawn").Pool(1) as process:  # a process whose peak memory is that of this work alone
        found = process.apply(write_and_search, (number, str(tmp_path / "embeddings")))
    print({name: round(value, 1) for name, value in found.items()})
    assert found["distinct"] > 10 and found["searched_mb"] < 1024
