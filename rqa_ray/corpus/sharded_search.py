"""Reads saved embeddings on a cluster, one share for each worker: ranks passages for questions, adds up moments.

Shapes: Q questions, K passages kept per question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
import torch

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.hybrid_pairs import PassageMoments
from rqa_ray.corpus.mining import PairScores
from rqa_ray.corpus.shards import Block, EmbeddingFolder
from rqa_ray.corpus.topk import RunningTopK, search_blocks

Change = Callable[[torch.Tensor], torch.Tensor]  # of embeddings (N, D)
QUESTIONS_AT_ONCE = 65_536  # the best 100 of each take 52 MB


def search(
    folder: EmbeddingFolder,
    question_folder: EmbeddingFolder,
    questions: Sequence[str],
    k: int,
    workers: Workers,
    normalize: bool,
    pairs: PairScores | None = None,
    change: Change | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns scores and positions (Q, K) of the best passages, and the seconds of the slowest worker.

    The same pass over the corpus fills the scores of `pairs`. `change` is applied to the embeddings of questions and
    of passages.
    """
    asked = torch.cat([block.embeddings for block in question_folder.blocks(questions)])
    asked = change(asked) if change else asked
    fixed = (folder.location, ray.put(asked.numpy()), k, workers, normalize, ray.put(pairs), change)
    waiting = [_search_share.options(**workers.of_a_task).remote(share, *fixed) for share in _shares(folder, workers)]
    topk, slowest = RunningTopK(len(asked), k), 0.0
    while waiting:  # one after the other, so that the driver holds the rankings of one worker, and not of all
        keys, scores, seconds = ray.get(waiting.pop())
        topk.merge(torch.from_numpy(keys.copy()))
        if pairs is not None:
            pairs.merge(scores)
        slowest = max(slowest, seconds)
    best, positions = topk.result()
    return best.numpy(), positions.numpy(), slowest


def _shares(folder: EmbeddingFolder, workers: Workers) -> list[list[str]]:
    """Returns the names of each worker's shards."""
    names = [shard.name for shard in folder.shards]
    return [names[worker :: workers.num_workers] for worker in range(min(workers.num_workers, len(names)))]


def passage_moments(folder: EmbeddingFolder, workers: Workers, normalize: bool) -> PassageMoments:
    """Returns the moments of all passages."""
    task = _moments_of_share.options(**workers.of_a_task)
    found = ray.get([task.remote(share, folder.location, workers, normalize) for share in _shares(folder, workers)])
    moments = PassageMoments(len(found[0]) - 1)
    moments.products += torch.from_numpy(np.sum(found, axis=0))
    return moments


@ray.remote
def _moments_of_share(names: list[str], location: str, workers: Workers, normalize: bool) -> np.ndarray:
    """Returns `PassageMoments.products` (D + 1, D + 1) of some shards."""
    torch.set_num_threads(workers.cpus)
    moments = None
    for block in EmbeddingFolder(location).blocks(names, normalize):
        moments = moments or PassageMoments(block.embeddings.shape[1])
        moments.add(block.embeddings)
    assert moments
    return moments.products.numpy()


@ray.remote
def _search_share(
    names: list[str],
    location: str,
    questions: np.ndarray,
    k: int,
    workers: Workers,
    normalize: bool,
    pairs: PairScores | None,
    change: Change | None,
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Returns the keys (Q, k) of the best passages in some shards, the scores of the pairs, and the seconds taken."""
    torch.set_num_threads(workers.cpus)
    folder, started = EmbeddingFolder(location), time.perf_counter()
    device, num_threads = ("cuda", 1) if workers.use_gpu else ("cpu", workers.cpus)
    asked = torch.from_numpy(questions.copy())
    if pairs is not None:
        pairs.scores = pairs.scores.copy()  # what comes from the object store is read-only
    keys: list[torch.Tensor] = []
    for part in asked.split(QUESTIONS_AT_ONCE):
        blocks = folder.blocks(names, normalize)
        if change:
            blocks = (Block(block.positions, change(block.embeddings)) for block in blocks)
        if pairs is not None and not keys:
            blocks = _scored(blocks, asked, pairs)
        keys.append(search_blocks(part.to(device), blocks, k, num_threads).keys.cpu())
    return torch.cat(keys).numpy(), None if pairs is None else pairs.scores, time.perf_counter() - started


def _scored(blocks: Iterator[Block], questions: torch.Tensor, pairs: PairScores) -> Iterator[Block]:
    """Yields the blocks, and scores the pairs of each before."""
    for block in blocks:
        pairs.add(questions, *block)
        yield block
