"""Encodes a corpus of any size, and other texts, on a whole cluster; restarts shard by shard.

1. `plan_corpus` parses all documents. So a bad line is reported before anything is encoded, the position of every
   distinct passage is known, and every run cuts the same shards.
2. `encode_corpus` streams the documents through Ray Data: tasks read and tokenize, actors encode and write shards.
   Shards that exist are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from rqa_ray.cluster.model_copies import bring_model, share_model
from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.plan import (
    CorpusPlan,
    Range,
    changed_since,
    documents_digest,
    group_ranges,
    kept_documents,
    read_documents,
    rows_per_shard,
)
from rqa_ray.corpus.shards import EmbeddingFolder
from rqa_ray.data.columns import Ragged
from rqa_ray.data.schema import text_hash
from rqa_ray.data.token_tables import TOKENS, make_tokenizer, with_tokenizer
from rqa_ray.errors import InputError
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import ModelSpec

READER_CPUS = 0.5  # CPUs of a task that reads; encoders leave them free
SHARD_SCHEMA = pa.schema(
    [
        ("location", pa.string()),
        ("precision", pa.string()),
        ("name", pa.string()),
        ("first", pa.int64()),
        ("passage_ids", pa.list_(pa.int64())),
        ("documents", pa.list_(pa.string())),
        ("tokens", pa.list_(TOKENS)),
        ("problem", pa.string()),  # why there is no shard
    ]
)

ENCODED_SCHEMA = pa.schema(
    [
        ("location", pa.string()),
        ("name", pa.string()),
        ("num_rows", pa.int64()),
        ("seconds", pa.float64()),
        ("problem", pa.string()),
    ]
)


def plan_corpus(files: list[str]) -> CorpusPlan:
    """Parses all documents and plans the shards.

    Raises:
        InputError: a bad line, or files without documents.
    """
    groups = group_ranges(files)
    counts, ids, hashes = zip(*(_read_ids.remote(ranges) for ranges in groups), strict=True)
    sizes = ray.get(list(counts))
    problem = next((found for found in sizes if isinstance(found, str)), None)
    if problem:
        raise InputError(problem)
    if not sum(sizes):
        raise InputError(f"{files[0]}: no records in it")
    # The driver takes one group after the other from the object store, so it never holds the numbers of all groups.
    plan = CorpusPlan(groups, sizes, map(ray.get, ids), map(ray.get, hashes))
    plan.refuse_clash()
    return plan


@ray.remote(num_cpus=READER_CPUS, num_returns=3)
def _read_ids(ranges: list[Range]) -> tuple[int | str, np.ndarray, np.ndarray]:
    """Returns how many documents a group has, or what is wrong with one; and the documents' ids and text hashes."""
    ids, hashes = array("q"), array("q")
    for document in read_documents(ranges):
        if isinstance(document, str):
            return document, np.zeros(0, np.int64), np.zeros(0, np.int64)
        ids.append(document.passage_id)
        hashes.append(text_hash(document.fmt_content))
    return len(ids), np.array(ids, np.int64), np.array(hashes, np.int64)


def text_shards(tokens: Sequence[np.ndarray], folder: EmbeddingFolder, encoder: str = "") -> list[pa.Table]:
    """Returns the token rows of texts as shards, named after their content and their encoder."""
    rows = rows_per_shard(len(tokens))
    tables = []
    for start in range(0, len(tokens), rows):
        part = [tokens[row] for row in range(start, min(start + rows, len(tokens)))]
        content = b"|".join([encoder.encode(), *(row.tobytes() for row in part)])
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        shard = {"location": folder.location, "precision": "fp32", "name": f"questions-{digest}", "first": start}
        blank = {"passage_ids": np.zeros(len(part), np.int64), "documents": [""] * len(part)}
        tables.append(_one_row({**shard, **blank, "tokens": part}))
    return tables


def _one_row(shard: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array([shard.get(name)], SHARD_SCHEMA.field(name).type) for name in SHARD_SCHEMA.names})


def encode_corpus(
    plan: CorpusPlan,
    folder: EmbeddingFolder,
    questions: list[pa.Table],
    spec: ModelSpec,
    workers: Workers,
    precision: str = "fp32",
    bf16: bool = False,
    on_shard: Callable[[str, int, float], None] = lambda name, num_rows, seconds: None,
) -> None:
    """Encodes and writes the shards that a folder lacks, and those of `text_shards`.

    `on_shard` is called with the name, the number of texts and the seconds of each encoded shard.

    Raises:
        InputError: the model's weights cannot be loaded, or the documents have changed since the plan was made.
    """
    done = folder.done()
    items = []
    for group in plan.groups:
        if not {shard.name for shard in group.shards} <= done:
            digests = zip(group.shards, group.digests, strict=True)
            shards = [[*shard, shard.name in done, digest] for shard, digest in digests]
            item = {"ranges": json.dumps(group.ranges), "shards": json.dumps(shards)}
            items.append({**item, "keep": group.kept_bits, "num_documents": group.num_documents})
    if not items and not questions:
        return
    spec = replace(spec, copy=share_model(spec.folder))
    with _a_block_a_row():
        parts = [ray.data.from_arrow(questions)] if questions else []
        if items:
            to_rows = {"spec": with_tokenizer(spec), "location": folder.location, "precision": precision}
            corpus = ray.data.from_items(items, override_num_blocks=len(items))
            parts.append(corpus.map_batches(_read_shards, batch_size=1, num_cpus=READER_CPUS, fn_kwargs=to_rows))
        together = parts[0].union(*parts[1:]) if parts[1:] else parts[0]  # Ray cannot unite a single data set
        encoded = together.map_batches(
            ShardEncoder,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers.num_workers),
            num_cpus=workers.cpus - READER_CPUS,
            num_gpus=1 if workers.use_gpu else 0,
            fn_constructor_args=(spec, bf16, workers.cpus, workers.use_gpu),
            # Ray writes an error line about any actor that may restart; here the user runs the same command again
            # instead.
            **({} if os.environ.get("RAY_ADDRESS") else {"max_restarts": 0}),
        )
    for row in encoded.iter_rows():
        if row["problem"]:
            raise InputError(row["problem"])
        EmbeddingFolder(row["location"]).log(row["name"], row["num_rows"], row["seconds"])
        on_shard(row["name"], row["num_rows"], row["seconds"])


@contextmanager
def _a_block_a_row() -> Iterator[None]:
    """Makes Ray Data pass on each row by itself, because a row is a shard: Ray Data would wait for 128 MB of rows."""
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 1
    try:
        with warnings.catch_warnings():  # before Ray 2.64, `max_restarts` can be set in no other way
            warnings.simplefilter("ignore", RayDeprecationWarning)
            yield
    finally:
        context.target_max_block_size = before


def _read_shards(batch: dict[str, np.ndarray], spec: ModelSpec, location: str, precision: str) -> Iterator[pa.Table]:
    """Yields the shards of a group that are missing, tokenized, one shard in each row.

    If the documents have changed since the plan was made, the last row says so in `problem`.
    """
    bits = np.unpackbits(np.frombuffer(batch["keep"][0], np.uint8), count=int(batch["num_documents"][0]))
    ranges = json.loads(str(batch["ranges"][0]))
    kept = kept_documents(ranges, bits.astype(bool))
    bring_model(spec.folder, spec.copy)
    tokenizer = make_tokenizer(spec)
    try:
        for name, first, num_rows, is_done, digest in json.loads(str(batch["shards"][0])):
            documents = list(islice(kept, num_rows))
            if is_done:
                continue
            if documents_digest(documents) != digest:
                raise changed_since(ranges)
            shard = {"location": location, "precision": precision, "name": name, "first": first}
            shard["passage_ids"] = [document.passage_id for document in documents]
            shard["documents"] = [json.dumps(document.to_dict()) for document in documents]
            yield _one_row({**shard, "tokens": tokenizer.passages([document.fmt_content for document in documents])})
        next(kept, None)  # checks that no document follows the last shard
    except InputError as error:  # Ray Data would print a page about the error of a task
        yield _one_row({"problem": str(error)})


class ShardEncoder:
    """An actor that encodes shards and writes them."""

    def __init__(self, spec: ModelSpec, bf16: bool, cpus: int, use_gpu: bool) -> None:
        torch.set_num_threads(cpus)
        bring_model(spec.folder, spec.copy)
        self.problem = ""
        try:
            self.embedder = Embedder.load(spec, "cuda" if use_gpu else "cpu", bf16)
        except InputError as error:  # Ray would print a page about the error of an actor
            self.problem = str(error)
            return
        for note in self.embedder.notes:
            print(note)  # Ray shows what an actor prints

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Returns a row with location, name, number of texts and seconds of the shard, or with a problem."""
        (shard,) = batch.select(["location", "precision", "name", "first", "problem"]).to_pylist()
        problem, num_rows, seconds = self.problem or shard["problem"], 0, 0.0
        if not problem:
            tokens = batch["tokens"][0].values
            num_rows, started = len(tokens), time.perf_counter()
            embeddings = self.embedder.rows(Ragged([tokens], np.arange(len(tokens))))
            seconds = time.perf_counter() - started
            texts = batch["passage_ids"][0].values, batch["documents"][0].values
            folder = EmbeddingFolder(shard["location"])
            folder.write(shard["name"], shard["first"], *texts, embeddings, shard["precision"])
        row = {"location": shard["location"], "name": shard["name"], "num_rows": num_rows, "seconds": seconds}
        return pa.Table.from_pylist([{**row, "problem": problem}], ENCODED_SCHEMA)
