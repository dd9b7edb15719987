"""Embeds a corpus into a folder; a second run encodes only the shards that are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.cluster.connection import connect
from rqa_ray.cluster.workers import Workers, plan_workers
from rqa_ray.corpus.encode import encode_corpus, plan_corpus
from rqa_ray.corpus.manifest import MANIFEST_FILE
from rqa_ray.corpus.model import Model, find_model
from rqa_ray.corpus.plan import CorpusPlan
from rqa_ray.corpus.shards import INDEX_FILE, EmbeddingFolder, fingerprint
from rqa_ray.corpus_settings import EmbedSettings
from rqa_ray.data.records import find_inputs
from rqa_ray.errors import InputError, need_extra
from rqa_ray.job_output import JobResult
from rqa_ray.places import check_local_folder, file_content, inside, shown
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.texts import command

IDENTITY = {
    "fingerprint": "another model or other settings",
    "digest": "other documents",
    "precision": "another --precision",
    "bf16": "another --bf16",
}


def manifest_of(model: Model, files: list[str], plan: CorpusPlan, precision: str, bf16: bool) -> dict[str, Any]:
    """Returns the manifest: which model, files and settings the embeddings belong to."""
    return {
        "model": model.name,
        "settings": vars(model.spec.settings),
        "fingerprint": fingerprint(model.spec.folder, model.spec.settings),
        "documents": [file_content(path) for path in files],
        "digest": plan.digest,
        "precision": precision,
        "bf16": bf16,
        "shards": plan.shards,
    }


def encode_missing(
    folder: EmbeddingFolder,
    manifest: dict[str, Any],
    model: Model,
    plan: CorpusPlan,
    workers: Workers,
    questions: Sequence[pa.Table] = (),
    overwrite: bool = False,
) -> None:
    """Encodes the shards that are missing in a folder, and question shards, which have their own folder.

    Raises:
        InputError: the folder has embeddings of another model, corpus or setting, or files that are no embeddings.
    """
    folder.check_own()
    earlier = folder.manifest()
    differ = [what for key, what in IDENTITY.items() if earlier and earlier.get(key) != manifest[key]]
    if differ and not overwrite:
        raise InputError(
            f"{shown(folder.location)}: has embeddings of {', '.join(differ)}; choose another folder, "
            "or replace them with --overwrite_output_dir"
        )
    if differ:
        folder.clear()
    # The documents may be the same texts, in files that were written again.
    if not earlier or differ or earlier.get("documents") != manifest["documents"]:
        folder.start(manifest)
    meter = _Meter(plan, folder.done())
    if meter.found:
        print(f"embeddings of {meter.found:,} passages are there already in {shown(folder.location)}")
    try:
        encode_corpus(
            plan, folder, [*questions], model.spec, workers, manifest["precision"], manifest["bf16"], meter.on_shard
        )
    except InputError:
        if not folder.done():
            folder.clear()
        raise
    finally:
        meter.line.clear()


@dataclass
class _Meter:
    """Counts finished shards for the progress line."""

    plan: CorpusPlan
    done: set[str]
    line: ProgressLine = field(default_factory=ProgressLine)

    def __post_init__(self) -> None:
        self.found = sum(shard.rows for shard in self.plan.shards if shard.name in self.done)
        self.progress = Progress("encoding, passages", self.found, len(self.plan.passage_ids))
        self.line.draw(self.progress)

    def on_shard(self, name: str, num_rows: int, seconds: float) -> None:
        if name.startswith("passages"):
            self.progress.done += num_rows
            self.line.draw(self.progress)


def check_index(location: str) -> None:
    """Raises InputError if a FAISS index could not be written."""
    need_extra("--index", "index", "faiss")
    if "://" in location:
        raise InputError(f"--index: cannot be written to {shown(location)}; embed to a folder")


def write_index(folder: EmbeddingFolder) -> str:
    """Writes an exact FAISS index (inner product) of all embeddings by passage id into the folder.

    Returns its path.
    """
    import faiss

    ids, start = folder.passage_ids(), 0
    index: Any = None
    for block in folder.blocks([shard.name for shard in folder.shards]):
        vectors = block.embeddings.numpy()
        index = index or faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(np.ascontiguousarray(vectors), ids[start : start + len(vectors)])
        start += len(vectors)
    path = os.path.join(folder.path, INDEX_FILE)
    faiss.write_index(index, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)
    return path


@dataclass
class EmbedResult(JobResult):
    """The embeddings of a corpus; the files are in output_dir."""

    output_dir: str
    model: str
    passages: int
    shards: int  # Parquet files of embeddings
    precision: str
    index: str | None = None  # the file of the FAISS index

    def describe(self) -> str:
        """Returns lines for a person."""
        written = [f"{self.passages:,} embeddings in {shown(self.output_dir)}, {self.shards:,} Parquet files"]
        words = ["--model", self.model, "--embeddings_path", self.output_dir, "a question"]
        lines = [f"written: {line}" for line in [*written, *([self.index] if self.index else [])]]
        return "\n".join([*lines, f"next:\n  {command('jobs/search.py', *words)}"])


def embed(settings: EmbedSettings) -> EmbedResult:
    """Embeds a corpus.

    Raises:
        InputError: the user's input is wrong; nothing was written.
    """
    if "://" not in settings.output_dir:
        check_local_folder(settings.output_dir)
    if settings.index:
        check_index(settings.output_dir)
    corpus = ("document_path", settings.document_path)
    files = find_inputs({"corpus": corpus}, skip_bad=False, outputs={"output_dir": settings.output_dir})["corpus"]
    folder = EmbeddingFolder(settings.output_dir)
    folder.check_own()
    model = find_model(settings)
    cluster = connect()
    workers = plan_workers(settings.num_workers, settings.cpus_per_worker, settings.use_cpu)
    print(f"Ray: {cluster}; {workers.describe()}\n{model.describe()}")
    plan = plan_corpus(files)
    print(plan.describe())
    manifest = manifest_of(model, files, plan, settings.precision, settings.bf16)
    encode_missing(folder, manifest, model, plan, workers, overwrite=settings.overwrite_output_dir)
    index = write_index(folder) if settings.index else None
    names = [MANIFEST_FILE, *(f"{shard.name}.parquet" for shard in folder.shards)]
    return EmbedResult(
        folder.location,
        model.name,
        len(plan.passage_ids),
        len(plan.shards),
        settings.precision,
        index,
        files=[*(inside(folder.location, name) for name in names), *([index] if index else [])],
    )
