"""A corpus of any size to saved embeddings, and questions to rankings, over a whole cluster; restartable by shard.

1. `corpus_plan.plan_corpus` parses all documents: what is wrong with a line is said before anything is encoded, and
   the distinct passages are known, so that each has its position and shards are the same in every run.
2. `encode_corpus` streams the documents through Ray Data: tasks read and tokenise, actors encode and write a shard.
   Shards that are there already are left out.
3. `search` ranks: a task for each worker goes through its share of the shards, and the running top-k are merged.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from rqa_ray.data.rows import Questions, Ragged
from rqa_ray.data.tokenise import TOKENS, TokeniserSpec, make_tokenizer
from rqa_ray.errors import InputError
from rqa_ray.evaluation.corpus_plan import READER_CPUS, CorpusPlan, kept_documents, rows_per_shard
from rqa_ray.evaluation.search import RunningTopK, search_blocks
from rqa_ray.evaluation.shards import EmbeddingFolder
from rqa_ray.preflight import WorkerPlan
from rqa_ray.retriever.encode import EncodeOptions, encode
from rqa_ray.retriever.saving import load_encoder

QUESTIONS_AT_ONCE = 65_536  # 52 MB of top-100 each
SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("first", pa.int64()),
        ("passage_ids", pa.list_(pa.int64())),
        ("documents", pa.list_(pa.string())),
        ("tokens", pa.list_(TOKENS)),
    ]
)


def question_shards(questions: Questions) -> list[pa.Table]:
    """The token rows of questions, cut as shards that are named after their content."""
    rows = rows_per_shard(len(questions))
    tables = []
    for start in range(0, len(questions), rows):
        tokens = [questions.tokens[row] for row in range(start, min(start + rows, len(questions)))]
        digest = hashlib.blake2b(b"".join(row.tobytes() + b"|" for row in tokens), digest_size=8).hexdigest()
        blank = [""] * len(tokens)
        tables.append(_shard_row(f"questions-{digest}", start, np.zeros(len(tokens), np.int64), blank, tokens))
    return tables


def _shard_row(name: str, first: int, ids: Any, documents: list[str], tokens: list[np.ndarray]) -> pa.Table:
    row = {"name": [name], "first": [first], "passage_ids": [ids], "documents": [documents], "tokens": [tokens]}
    return pa.table({key: pa.array(value, SHARD_SCHEMA.field(key).type) for key, value in row.items()})


def encode_corpus(
    plan: CorpusPlan,
    questions: list[pa.Table],
    folder: EmbeddingFolder,
    spec: TokeniserSpec,
    workers: WorkerPlan,
    precision: str = "fp32",
    bf16: bool = False,
    on_shard: Callable[[str, int, float], None] = lambda name, num_rows, seconds: None,
) -> None:
    """Encodes and writes the shards that are missing, of questions (`question_shards`) and of the corpus.

    Raises InputError where the model's weights cannot be loaded.
    `on_shard` gets the name, the number of texts and the seconds of each shard that was encoded.
    """
    done = folder.done()
    missing = [table for table in questions if table["name"][0].as_py() not in done]
    items = [
        group | {"done": json.dumps(sorted(done & {name for name, *_ in json.loads(group["shards"])}))}
        for group in plan.groups
    ]
    items = [item for item in items if len(json.loads(item["done"])) < len(json.loads(item["shards"]))]
    with _a_block_a_row():
        parts = [ray.data.from_arrow(missing)] if missing else []
        if items:
            corpus = ray.data.from_items(items, override_num_blocks=len(items))
            parts.append(
                corpus.map_batches(_read_shards, batch_size=1, num_cpus=READER_CPUS, fn_kwargs={"spec": spec})
            )
        if not parts:
            return
        dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
        encoded = dataset.map_batches(
            ShardEncoder,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers.num_workers),
            num_cpus=workers.cpus - READER_CPUS,
            num_gpus=1 if workers.use_gpu else 0,
            fn_constructor_kwargs={
                "location": folder.location,
                "spec": spec,
                "precision": precision,
                "bf16": bf16,
                "cpus": workers.cpus,
                "use_gpu": workers.use_gpu,
            },
            # Ray writes an error line about any actor that may restart; here the same command goes on instead.
            **({} if os.environ.get("RAY_ADDRESS") else {"max_restarts": 0}),
        )
    for row in encoded.iter_rows():
        if row["problem"]:
            raise InputError(row["problem"])
        folder.log(row["name"], row["num_rows"], row["seconds"])
        on_shard(row["name"], row["num_rows"], row["seconds"])


@contextmanager
def _a_block_a_row() -> Iterator[None]:
    """A shard is a row, and each is to reach an encoder by itself: Ray Data would wait for 128 MB of them."""
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 1
    try:
        with warnings.catch_warnings():  # `max_restarts` has no other way in until Ray 2.64
            warnings.simplefilter("ignore", RayDeprecationWarning)
            yield
    finally:
        context.target_max_block_size = before


def _read_shards(batch: dict[str, np.ndarray], spec: TokeniserSpec) -> Iterator[pa.Table]:
    """The shards of a group that are not done, tokenised, a row each."""
    shards, done = json.loads(str(batch["shards"][0])), set(json.loads(str(batch["done"][0])))
    tokenizer = make_tokenizer(spec)
    kept = kept_documents(str(batch["ranges"][0]), batch["keep"][0])
    for name, first, num_rows in shards:
        documents = list(islice(kept, num_rows))
        if name in done:
            continue
        ids = [document.passage_id for document in documents]
        texts = [json.dumps(document.to_dict()) for document in documents]
        tokens = tokenizer.passages([document.fmt_content for document in documents])
        yield _shard_row(name, first, ids, texts, tokens)


class ShardEncoder:
    """An actor that encodes shards and writes them."""

    def __init__(
        self, location: str, spec: TokeniserSpec, precision: str, bf16: bool, cpus: int, use_gpu: bool
    ) -> None:
        torch.set_num_threads(cpus)
        self.folder, self.precision = EmbeddingFolder(location), precision
        self.problem: str | None = None
        try:
            encoder = load_encoder(spec.folder, spec.settings, trust_remote_code=spec.trust_remote_code)
        except InputError as error:  # Ray would print a page about an actor that raises
            self.problem = str(error)
            return
        self.encoder = encoder.to("cuda" if use_gpu else "cpu").eval()
        pad_id = make_tokenizer(spec).tokenizer.pad_token_id
        self.options = EncodeOptions.for_device(self.encoder, pad_id, bf16)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Name, number of texts and seconds of each shard (a row) of the batch; or a problem."""
        if self.problem:
            return pa.Table.from_pylist([{"name": "", "num_rows": 0, "seconds": 0.0, "problem": self.problem}])
        results = []
        for row in range(len(batch)):
            shard = batch.slice(row, 1)
            name, first = shard["name"][0].as_py(), shard["first"][0].as_py()
            tokens = shard["tokens"][0].values
            started = time.perf_counter()
            embeddings = encode(self.encoder, Ragged([tokens], np.arange(len(tokens))), self.options)
            seconds = time.perf_counter() - started
            ids, documents = shard["passage_ids"][0].values, shard["documents"][0].values
            self.folder.write(name, first, ids, documents, embeddings, self.precision)
            results.append({"name": name, "num_rows": len(tokens), "seconds": seconds, "problem": ""})
        return pa.Table.from_pylist(results)


def search(
    folder: EmbeddingFolder, questions: Sequence[str], k: int, workers: WorkerPlan, normalize: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores and positions (Q, K) of the question shards' best passages, and the seconds of the slowest worker."""
    names = [shard.name for shard in folder.shards]
    shares = [names[worker :: workers.num_workers] for worker in range(min(workers.num_workers, len(names)))]
    resources = {"num_cpus": workers.cpus, "num_gpus": 1 if workers.use_gpu else 0}
    fixed = (folder.location, list(questions), k, workers.cpus, workers.use_gpu, normalize)
    found = ray.get([_search_share.options(**resources).remote(share, *fixed) for share in shares])
    keys = torch.from_numpy(found[0][0].copy())
    topk = RunningTopK(len(keys), keys.shape[1])
    for part, _ in found:
        topk.merge(torch.from_numpy(part.copy()))
    scores, positions = topk.result()
    return scores.numpy(), positions.numpy(), max(seconds for _, seconds in found)


@ray.remote
def _search_share(
    names: list[str], location: str, questions: list[str], k: int, cpus: int, use_gpu: bool, normalize: bool
) -> tuple[np.ndarray, float]:
    """Keys (Q, k) of the best passages of some shards, and seconds."""
    torch.set_num_threads(cpus)
    device = "cuda" if use_gpu else "cpu"
    folder = EmbeddingFolder(location)
    asked = torch.cat([block.embeddings for block in folder.blocks(questions)])
    started = time.perf_counter()
    keys = [
        search_blocks(part.to(device), folder.blocks(names, normalize), k, 1 if use_gpu else cpus).keys.cpu()
        for part in asked.split(QUESTIONS_AT_ONCE)
    ]
    return torch.cat(keys).numpy(), time.perf_counter() - started
