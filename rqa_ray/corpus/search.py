"""Finds passages for a question that a person asks, in one process without Ray."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rqa_ray.corpus.bm25 import Bm25, Hybrid, Weight
from rqa_ray.corpus.model import Model, find_model
from rqa_ray.corpus.shards import EMBEDDINGS_FOLDER, Block, EmbeddingFolder, fingerprint
from rqa_ray.corpus.topk import search_blocks
from rqa_ray.corpus_settings import SearchSettings
from rqa_ray.data.distinct import read_distinct
from rqa_ray.data.records import find_inputs
from rqa_ray.data.schema import Document, is_given
from rqa_ray.errors import InputError, need_extra
from rqa_ray.job_output import JobResult
from rqa_ray.places import file_content, shown
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.texts import html_table, printable

HELD_BYTES = 2**31  # embeddings that are held in memory; larger ones are read again for each question
SNIPPET_CHARS = 300


@dataclass
class Hit:
    """A passage that was found."""

    score: float
    document: Document

    @property
    def title(self) -> str:
        metadata = self.document.metadata
        return next((str(metadata[name]) for name in ("title", "source") if is_given(metadata, name)), "passage")


class Searcher:
    """Answers questions with passages, from saved embeddings or from documents that it encodes."""

    def __init__(
        self,
        model: Model,
        files: list[str] | None,
        embeddings_path: str | None,
        bf16: bool = False,
        weight: Weight | None = None,
    ) -> None:
        """Loads the model and the embeddings; with a weight also BM25, for a hybrid that holds all in memory.

        Raises:
            InputError: there is nothing to search, or the embeddings are from another model.
        """
        self.source = ""
        folder = self._saved(model, files, embeddings_path)
        if not folder and not files:
            raise InputError(
                "--document_path is missing: pass the passages' files, or saved embeddings with --embeddings_path"
            )
        self.embedder = Embedder.load(model.spec, bf16=bf16)
        for note in self.embedder.notes:
            print(note, file=sys.stderr)
        self._documents: Callable[[np.ndarray], dict[int, dict[str, Any]]]
        self._blocks: Callable[[], Any]
        if folder:
            self._documents = folder.documents
            names, normalize = [shard.name for shard in folder.shards], model.spec.settings.unit_length
            if sum(shard.rows for shard in folder.shards) * self.embedder.encoder.dimensions * 4 <= HELD_BYTES:
                held = list(folder.blocks(names, normalize))
                self._blocks = lambda: held
            else:
                self._blocks = lambda: folder.blocks(names, normalize)
        else:
            documents, block = self._encode(files or [])
            self._documents = lambda positions: {int(place): documents[int(place)].to_dict() for place in positions}
            self._blocks = lambda: [block]
        self._weight, self._hybrid = 1.0, None
        if weight:
            texts = folder.texts(names) if folder else (document.fmt_content for document in documents)
            passages = torch.cat([block.embeddings.cpu() for block in self._blocks()])
            self._weight, self._hybrid = weight.value, Hybrid(Bm25(list(texts)), passages)
            self.source += f"; {weight.describe()}"

    def _saved(self, model: Model, files: list[str] | None, embeddings_path: str | None) -> EmbeddingFolder | None:
        """Returns the saved embeddings, if they are from this model and these documents."""
        folder = EmbeddingFolder(embeddings_path or str(Path(model.spec.folder) / EMBEDDINGS_FOLDER))
        manifest, problem = None, None
        try:
            manifest = folder.manifest()
        except InputError as error:
            if embeddings_path:
                raise
            print(f"note: {error}", file=sys.stderr)
            return None
        if manifest is None:
            problem = "no embeddings in it"
        elif manifest.get("fingerprint") != fingerprint(model.spec.folder, model.spec.settings):
            problem = f"its embeddings belong to another model or other settings ({manifest.get('model')})"
        elif files and manifest.get("documents") != [file_content(path) for path in files]:
            problem = "its embeddings belong to other documents, or to an earlier version of these; run jobs/embed.py"
        elif not folder.is_complete():
            problem = "its embeddings are not complete; run jobs/embed.py again"
        if not problem:
            place = shown(embeddings_path or folder.location)
            self.source = f"{sum(shard.rows for shard in folder.shards):,} saved embeddings in {place}"
            return folder
        if embeddings_path:
            raise InputError(f"--embeddings_path {embeddings_path}: {problem}")
        if manifest:
            print(f"note: {shown(folder.location)} is not used: {problem}", file=sys.stderr)
        return None

    def _encode(self, files: list[str]) -> tuple[list[Document], Block]:
        kept = list(read_distinct(files))
        line, progress = ProgressLine(), Progress("encoding, passages", 0, len(kept))

        def on_batch(num_rows: int) -> None:
            progress.done += num_rows
            line.draw(progress)

        embeddings = self.embedder.passages([document.fmt_content for document in kept], on_batch)
        line.clear()
        self.source = f"{len(kept):,} passages, encoded now; jobs/embed.py saves them"
        return kept, Block(torch.arange(len(kept)), embeddings)

    def search(self, question: str, k: int) -> list[Hit]:
        """Returns the best passages, best first."""
        asked = self.embedder.questions([question])
        if self._hybrid:
            ranked = self._hybrid.rank([question], asked.cpu(), [self._weight], k)[self._weight]
            scores, positions = (part[0] for part in ranked)
        else:
            topk = search_blocks(asked, self._blocks(), k)
            scores, positions = (part[0].cpu().numpy() for part in topk.result())
        found = self._documents(positions)
        return [Hit(float(score), Document(**found[place])) for score, place in zip(scores, positions, strict=True)]


@dataclass
class Answer(JobResult):
    """The passages that were found for a question, best first."""

    question: str
    hits: list[Hit]
    source: str  # what was searched
    seconds: float

    def describe(self) -> str:
        """Returns lines for a person."""
        return f"{self.source}\n{self.describe_hits()}"

    def describe_hits(self) -> str:
        """Returns lines for a person, without what was searched; a terminal shows titles in bold."""
        return f"{show(self.hits, sys.stdout.isatty())}\n({self.seconds:.2f} s)"

    def for_json(self) -> dict[str, Any]:
        """Returns what a program gets, with whole documents."""
        retrieved = [{**vars(hit.document), "score": hit.score} for hit in self.hits]
        return {"question": self.question, "retrieved_docs": retrieved}

    def _repr_html_(self) -> str:
        rows = [
            [hit.score, hit.title, textwrap.shorten(hit.document.page_content, SNIPPET_CHARS)] for hit in self.hits
        ]
        return html_table(["score", "title", self.question], rows)


def show(hits: list[Hit], highlight: bool) -> str:
    """Returns lines for a person: score, title and source of each passage, and how it begins.

    Characters of the passage that would command the terminal are escaped.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    lines = []
    for number, hit in enumerate(hits, start=1):
        source = str(hit.document.metadata["source"]) if is_given(hit.document.metadata, "source") else ""
        title = printable(hit.title)
        title = f"\033[1m{title}\033[0m" if highlight else title
        lines.append(f"{number:2}. {hit.score:.3f}  {title}")
        lines += [f"    {printable(source)}"] if source else []
        text = textwrap.shorten(hit.document.page_content, SNIPPET_CHARS, placeholder=" ...")
        lines += textwrap.wrap(printable(text), width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def open_searcher(settings: SearchSettings) -> Searcher:
    """Opens what the settings name: saved embeddings or documents.

    Raises:
        InputError: the user's input is wrong.
    """
    if settings.hybrid_weight is not None and settings.retriever_type != "hybrid":
        raise InputError(f"--hybrid_weight {settings.hybrid_weight:g}: no effect without --retriever_type hybrid")
    files = find_inputs({"corpus": ("document_path", settings.document_path)}, skip_bad=False).get("corpus")
    model, weight = find_model(settings), None
    if settings.retriever_type == "hybrid":
        need_extra("--retriever_type hybrid", "bm25", "bm25s")
        weight = Weight.of(settings.hybrid_weight, model.spec.folder) or Weight(0.5, "as the model has no weight")
    return Searcher(model, files, settings.embeddings_path, settings.bf16, weight)


def answer(searcher: Searcher, question: str, k: int) -> Answer:
    """Returns the best passages for one question."""
    started = time.perf_counter()
    hits = searcher.search(question, k)
    return Answer(question, hits, searcher.source, time.perf_counter() - started)


def search(settings: SearchSettings) -> Answer:
    """Returns the best passages for `settings.question`.

    Raises:
        InputError: the user's input is wrong.
    """
    if not settings.question:
        raise InputError("--question is missing: pass the question")
    return answer(open_searcher(settings), settings.question, settings.top_k)


def prompt(settings: SearchSettings) -> None:
    """Asks the user for questions until there are no more, and prints the passages for each."""
    searcher = open_searcher(settings)
    print(f"{searcher.source}\na question, or an empty line to end")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        print(answer(searcher, question, settings.top_k).describe_hits())
