"""Measures the search alone: this project's, from memory and from saved embeddings; a plain matmul; FAISS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.functional import normalize

from rqa_ray.benchmarks.contenders import OWN, Stopwatch
from rqa_ray.benchmarks.processes import Figures
from rqa_ray.corpus.shards import ROWS_PER_BLOCK, EmbeddingFolder
from rqa_ray.corpus.topk import search_blocks

OWN_SEARCH, PARQUET = f"{OWN} search", f"{OWN} search from Parquet"
PLAIN, FAISS = "plain matmul, no ranking", "faiss.IndexFlatIP"


@dataclass
class Search:
    """Random unit vectors: a corpus and questions."""

    num_passages: int
    num_questions: int
    dimensions: int
    k: int
    threads: int
    folder: str = ""  # folder of the corpus as saved embeddings

    def questions(self) -> torch.Tensor:
        return _random(self.num_questions, self.dimensions, seed=1)

    def passages(self) -> torch.Tensor:
        """Returns all vectors of the corpus."""
        return torch.cat([self.block(start) for start in range(0, self.num_passages, ROWS_PER_BLOCK)])

    def block(self, start: int) -> torch.Tensor:
        """Returns the block of passages that begins at a multiple of ROWS_PER_BLOCK."""
        return _random(min(ROWS_PER_BLOCK, self.num_passages - start), self.dimensions, seed=2 + start)


def _random(rows: int, dimensions: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed)), dim=1)


def searches(peer: bool) -> dict[str, Callable[[Any], Figures]]:
    """Returns the contenders by name."""
    names = [OWN_SEARCH, PARQUET, PLAIN, *([FAISS] if peer else [])]
    return {name: partial(time_search, contender=name) for name in names}


def save(search: Search) -> None:
    """Writes the corpus as jobs/embed.py does."""
    folder = EmbeddingFolder(search.folder)
    shards = []
    for start in range(0, search.num_passages, ROWS_PER_BLOCK):
        block = search.block(start)
        shards.append((f"passages-{start:09d}", start, len(block)))
        folder.write(shards[-1][0], start, range(len(block)), [""] * len(block), block)
    folder.start({"shards": shards})


def time_search(search: Search, contender: str) -> Figures:
    """Returns the seconds that a contender needs for all questions; its vectors are made before."""
    torch.set_num_threads(search.threads)
    questions = search.questions()
    prepared = _PREPARE[contender](search)
    with torch.inference_mode():
        prepared(questions[:10])  # loads and allocates what is needed once
        before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory of the process
        stopwatch = Stopwatch(torch.device("cpu"))
        stopwatch.start()
        prepared(questions)
        stopwatch.stop()
    figures = stopwatch.figures
    pairs = search.num_passages * search.num_questions
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    figures["memory_gained_gb"] = (int(status["VmHWM"].split()[0]) * 1024 - before) / 1e9
    return {**figures, "rate": pairs / figures["cpu_seconds"], "per_second": pairs / figures["seconds"]}


def _own(search: Search) -> Callable[[torch.Tensor], None]:
    passages = search.passages()
    places = torch.arange(len(passages))

    def find(questions: torch.Tensor) -> None:
        blocks = zip(places.split(ROWS_PER_BLOCK), passages.split(ROWS_PER_BLOCK), strict=True)
        search_blocks(questions, blocks, search.k, search.threads)

    return find


def _parquet(search: Search) -> Callable[[torch.Tensor], None]:
    folder = EmbeddingFolder(search.folder)
    names = [shard.name for shard in folder.shards]

    def find(questions: torch.Tensor) -> None:
        search_blocks(questions, folder.blocks(names if len(questions) > 10 else names[:2]), search.k, search.threads)

    return find


def _plain(search: Search) -> Callable[[torch.Tensor], None]:
    passages = search.passages()

    def find(questions: torch.Tensor) -> None:
        for block in passages.split(ROWS_PER_BLOCK):
            questions @ block.T

    return find


def _faiss(search: Search) -> Callable[[torch.Tensor], None]:
    import faiss

    faiss.omp_set_num_threads(search.threads)
    index = faiss.IndexFlatIP(search.dimensions)
    for start in range(0, search.num_passages, ROWS_PER_BLOCK):
        index.add(search.block(start).numpy())

    def find(questions: torch.Tensor) -> None:
        index.search(questions.numpy(), search.k)

    return find


_PREPARE = {OWN_SEARCH: _own, PARQUET: _parquet, PLAIN: _plain, FAISS: _faiss}


def search_table(summary: dict[str, Figures]) -> str:
    """Returns a Markdown table of the search."""
    lines = ["| | million pairs/CPU-s | million pairs/s | rqa_ray is faster by | memory gained by searching, GB |"]
    lines.append("|---|---|---|---|---|")
    for name, figures in summary.items():
        lines.append(
            f"| {name} | {figures['rate'] / 1e6:.0f} | {figures['per_second'] / 1e6:.0f} "
            f"| {figures['times_slower']:.2f} | {figures['memory_gained_gb']:.2f} |"
        )
    return "\n".join(lines)
