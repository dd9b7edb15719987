"""Reads and writes saved embeddings: a folder or URI of Parquet files, each one shard of the corpus in document order.

A shard has one row for each distinct passage: `position` (its place in document order), `passage_id`, `document`
(JSON) and `embedding`, a list of fixed length of fp32, fp16 or int8 numbers. Rows of int8 also have a `scale`, which
multiplies the numbers.

A shard file is complete as soon as it exists. `manifest.json` says which model and corpus the embeddings belong to.
`shards.jsonl` gets one line for each shard when it has been encoded.

Shapes: N passages in a shard or block, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from torch import nn

from rqa_ray.corpus.manifest import MANIFEST_FILE, parse_manifest
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import open_location, shown, write_whole
from rqa_ray.retriever.encoder_settings import EncoderSettings, module_folders

LOG_FILE = "shards.jsonl"
INDEX_FILE = "index.faiss"  # the index that jobs/embed.py --index makes
EMBEDDINGS_FOLDER = "embeddings"  # name of the folder inside a model's or an evaluation's folder
QUESTIONS_FOLDER = "questions"  # the embeddings of questions, for a run that goes on
PRECISIONS = {"fp32": pa.float32(), "fp16": pa.float16(), "int8": pa.int8()}
ROWS_PER_BLOCK = 16_384
# Files in a transformer's folder that change its embeddings.
MODEL_FILES = (
    "config.json",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.safetensors",
    "*model*.bin",
    "*.py",
)


class Shard(NamedTuple):
    """The passages at positions `first` to `first + rows`, without the last."""

    name: str
    first: int
    rows: int


class Block(NamedTuple):
    """Embeddings of N passages, in memory."""

    positions: torch.Tensor  # (N,) int64
    embeddings: torch.Tensor  # (N, D) fp32


class EmbeddingFolder:
    """The shards at a location, with their manifest."""

    def __init__(self, location: str) -> None:
        """Opens a path or URI, which need not exist.

        Raises:
            InputError: no file system knows such a URI.
        """
        # absolute, because workers run in other folders
        self.location = location if "://" in location else os.path.abspath(location)
        try:
            self.filesystem, self.path = open_location(location)
        except (OSError, ValueError, ImportError) as error:
            raise self._not_opened(error) from None
        self._manifest: dict[str, Any] | None = None

    def _not_opened(self, error: BaseException) -> InputError:
        return InputError(f"{shown(self.location)}: cannot be opened ({first_line(error)})")

    def manifest(self) -> dict[str, Any] | None:
        """Returns what `start` wrote; None where nothing was written.

        Raises:
            InputError: the location cannot be read, or its manifest.json is not one that `start` wrote.
        """
        path = f"{self.path}/{MANIFEST_FILE}"
        try:
            if self._manifest is None and self.filesystem.get_file_info(path).type == fs.FileType.File:
                with self.filesystem.open_input_stream(path) as file:
                    self._manifest = parse_manifest(file.read())
        except OSError as error:
            raise self._not_opened(error) from None
        except ValueError as error:
            what = f"its {MANIFEST_FILE} is not about embeddings ({error})"
            raise InputError(f"{shown(self.location)}: {what}; choose another folder") from None
        return self._manifest

    def check_own(self) -> None:
        """Raises InputError if the folder has no manifest, but other files, which would be mixed up with shards."""
        if self.manifest() is not None:
            return
        try:
            if isinstance(self.filesystem, fs.LocalFileSystem):
                with suppress(FileNotFoundError):
                    os.listdir(self.path)  # Arrow takes a path below a file for one that does not exist
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise self._not_opened(error) from None
        names = sorted(item.base_name for item in found if not item.base_name.startswith("."))
        if names:
            raise InputError(
                f"{shown(self.location)}: has files that are no embeddings ({names[0]}); choose an empty folder"
            )

    def start(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest."""
        self._write(MANIFEST_FILE, json.dumps(manifest, indent=2).encode())
        self._manifest = manifest

    def clear(self) -> None:
        """Deletes the shards that the manifest names, the log, the index and the manifest, and no other file."""
        names = [*(f"{shard.name}.parquet" for shard in self.shards), LOG_FILE, INDEX_FILE]
        # The manifest is the last: a folder whose deletion was cut off still says which files are its own.
        for name in [*names, MANIFEST_FILE] if self.manifest() else []:
            if self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File:
                self.filesystem.delete_file(f"{self.path}/{name}")
        self._manifest = None
        if isinstance(self.filesystem, fs.LocalFileSystem) and os.path.isdir(self.path) and not os.listdir(self.path):
            os.rmdir(self.path)

    @property
    def shards(self) -> list[Shard]:
        """All shards of the corpus, also those that are not written yet."""
        return [Shard(*shard) for shard in (self.manifest() or {"shards": []})["shards"]]

    def done(self) -> set[str]:
        """Returns the names of the shards that are written."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {item.base_name.removesuffix(".parquet") for item in found if item.base_name.endswith(".parquet")}

    def is_complete(self) -> bool:
        """Returns whether all shards are written."""
        return bool(self.shards) and {shard.name for shard in self.shards} <= self.done()

    def log(self, name: str, num_rows: int, seconds: float) -> None:
        """Adds a line about an encoded shard to the log, where the file system can append to files."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            line = {"shard": name, "rows": num_rows, "seconds": round(seconds, 3), "time": time.time()}
            with open(f"{self.path}/{LOG_FILE}", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def logged_seconds(self, names: Sequence[str]) -> float:
        """Returns how long the encoding of some shards took, as far as it was logged (seconds)."""
        path = Path(self.path) / LOG_FILE
        if not isinstance(self.filesystem, fs.LocalFileSystem) or not path.is_file():
            return 0.0
        lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        seconds = {line["shard"]: line["seconds"] for line in lines}
        return sum(seconds.get(name, 0.0) for name in names)

    def write(
        self,
        name: str,
        first: int,
        passage_ids: Sequence[int] | pa.Array,
        documents: Sequence[str] | pa.Array,
        embeddings: torch.Tensor,
        precision: str = "fp32",
    ) -> None:
        """Writes a shard of (N, D) fp32 embeddings; the file appears only when it is complete."""
        numbers, scales = _quantize(embeddings.cpu().numpy(), precision)
        dimensions = numbers.shape[1]
        columns = {
            "position": pa.array(np.arange(first, first + len(numbers))),
            "passage_id": pa.array(passage_ids, pa.int64()),
            "document": pa.array(documents, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), dimensions),
        }
        if scales is not None:
            columns["scale"] = pa.array(scales)
        sink = pa.BufferOutputStream()
        compression = {name: "none" for name in columns} | {"document": "zstd"}
        compression.pop("embedding")
        # Parquet stores an int8 number in four bytes, most of them 0, so compression pays.
        compression["embedding.list.element"] = "zstd" if precision == "int8" else "none"
        pq.write_table(pa.table(columns), sink, compression=compression, use_dictionary=False, write_statistics=False)
        self._write(f"{name}.parquet", sink.getvalue())

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        self.filesystem.create_dir(self.path, recursive=True)
        if isinstance(self.filesystem, fs.LocalFileSystem):
            write_whole(Path(self.path) / name, content)
        else:  # a bucket shows a file only when it is complete
            with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
                file.write(content)

    def blocks(self, names: Sequence[str], normalize: bool = False) -> Iterator[Block]:
        """Yields the embeddings of some shards in order, in blocks of about 16,000 passages.

        With `normalize`, embeddings of fp16 and int8 get unit length.
        """
        held: list[Block] = []
        for name in names:
            held.append(self._read(name, normalize))
            if sum(len(block.positions) for block in held) >= ROWS_PER_BLOCK:
                yield _joined(held)
                held = []
        if held:
            yield _joined(held)

    def _read(self, name: str, normalize: bool) -> Block:
        table = self._table(name, None)
        column = table["embedding"].combine_chunks()
        numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        if "scale" in table.column_names:
            numbers = numbers.astype(np.float32) * table["scale"].to_numpy()[:, None]
        embeddings = torch.from_numpy(np.array(numbers, dtype=np.float32))
        if normalize and column.type.value_type != pa.float32():
            embeddings = nn.functional.normalize(embeddings, dim=1)
        return Block(torch.from_numpy(table["position"].to_numpy().copy()), embeddings)

    def _table(self, name: str, columns: list[str] | None) -> pa.Table:
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}.parquet") as file:
                parquet = pq.ParquetFile(file)
                every = parquet.schema_arrow.names
                numbers = [name for name in every if name not in ("document", "passage_id")]
                return parquet.read(columns=columns or numbers)
        except (OSError, pa.ArrowException) as error:
            what = f"cannot be read ({first_line(error)}); delete it and embed again, which makes it anew"
            raise InputError(f"{shown(self.location)}/{name}.parquet: {what}") from None

    def documents(self, positions: np.ndarray) -> dict[int, dict[str, Any]]:
        """Returns the documents at some positions."""
        wanted = np.unique(positions)
        found: dict[int, dict[str, Any]] = {}
        for shard in self.shards:
            here = wanted[np.searchsorted(wanted, shard.first) : np.searchsorted(wanted, shard.first + shard.rows)]
            if len(here):
                column = self._table(shard.name, ["document"])["document"].combine_chunks()
                texts = column.take(pa.array(here - shard.first)).to_pylist()
                found |= {int(position): json.loads(text) for position, text in zip(here, texts, strict=True)}
        return found

    def texts(self, names: Sequence[str]) -> Iterator[str]:
        """The embedded texts of the passages of some shards, in their order."""
        for name in names:
            for text in self._table(name, ["document"])["document"].to_pylist():
                yield Document(**json.loads(text)).fmt_content

    def passage_ids(self) -> np.ndarray:
        """Returns (P,) the ids of all passages, in document order."""
        parts = [self._table(shard.name, ["passage_id"])["passage_id"].to_numpy() for shard in self.shards]
        return np.concatenate(parts)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return Block(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _quantize(embeddings: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray | None]:
    if precision != "int8":
        return embeddings.astype(PRECISIONS[precision].to_pandas_dtype()), None
    # one scale for each row, so that the row's largest number becomes 127
    scales = np.maximum(np.abs(embeddings).max(axis=1), 1e-12) / 127
    return np.round(embeddings / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def fingerprint(model_folder: str, settings: EncoderSettings | None) -> str:
    """Returns a hash of a model's settings and weights; models with the same hash give the same embeddings.

    Only files that change embeddings count. Results, checkpoints and embeddings in the same folder do not.
    """
    digest = hashlib.blake2b(json.dumps(settings and vars(settings), sort_keys=True).encode(), digest_size=16)
    root, (transformer, *others) = Path(model_folder), module_folders(model_folder)
    files = {root / "modules.json", *(path for kind in MODEL_FILES for path in transformer.glob(kind))}
    files |= {path for folder in others if folder != root for path in folder.rglob("*")}
    for path in sorted(files):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode())
            with path.open("rb") as file:
                while part := file.read(2**24):
                    digest.update(part)
    return digest.hexdigest()
