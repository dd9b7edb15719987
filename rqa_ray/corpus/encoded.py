"""Embeds a corpus and questions by one model into folders; what is there already is not encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.embed import encode_missing, manifest_of
from rqa_ray.corpus.encode import text_shards
from rqa_ray.corpus.hybrid_pairs import PassageMoments
from rqa_ray.corpus.mining import PairScores
from rqa_ray.corpus.model import Model
from rqa_ray.corpus.plan import CorpusPlan
from rqa_ray.corpus.sharded_search import passage_moments, search
from rqa_ray.corpus.shards import EMBEDDINGS_FOLDER, EmbeddingFolder
from rqa_ray.corpus_settings import EvaluateSettings, MineSettings
from rqa_ray.retriever.matryoshka import cut


def embedding_folder(settings: EvaluateSettings | MineSettings) -> EmbeddingFolder:
    """Opens the folder of the passages' embeddings."""
    return EmbeddingFolder(settings.embeddings_path or str(Path(settings.output_dir) / EMBEDDINGS_FOLDER))


class Encoded:
    """The embeddings of a corpus in a folder, and of other texts (questions, golds beside the corpus) in another."""

    def __init__(self, model: Model, folder: EmbeddingFolder, texts: EmbeddingFolder, workers: Workers) -> None:
        self.model, self.folder, self.texts, self.workers = model, folder, texts, workers
        self.shards: dict[str, list[str]] = {}  # names of the shards of other texts, by name of the texts

    def encode(
        self,
        files: list[str],
        plan: CorpusPlan,
        tokens: Mapping[str, Sequence[np.ndarray]],
        bf16: bool,
        overwrite: bool,
    ) -> None:
        """Encodes the passages of the corpus and the other texts (token rows by name) that are not encoded yet.

        Raises:
            InputError: the folder has other embeddings, and `overwrite` does not replace them.
        """
        precision = (self.folder.manifest() or {}).get("precision", "fp32")  # as jobs/embed.py made them
        manifest = manifest_of(self.model, files, plan, precision, bf16)
        encoder = f"{manifest['fingerprint']} {bf16}"
        tables = {name: text_shards(rows, self.texts, encoder) for name, rows in tokens.items()}
        self.shards = {name: [table["name"][0].as_py() for table in part] for name, part in tables.items()}
        done = self.texts.done()
        missing = [table for part in tables.values() for table in part if table["name"][0].as_py() not in done]
        encode_missing(self.folder, manifest, self.model, plan, self.workers, missing, overwrite)

    def embeddings(self, name: str) -> torch.Tensor:
        """Returns the embeddings (n, D) of the texts of a name."""
        return self.embeddings_of(self.shards[name])

    def embeddings_of(self, shards: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings (n, D) of the texts of some shards."""
        return torch.cat([block.embeddings for block in self.texts.blocks(shards)])

    def search(
        self, shards: Sequence[str], k: int, pairs: PairScores | None = None, dimensions: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Ranks the corpus for the questions of some shards, as `sharded_search.search` does.

        All embeddings are cut to `dimensions`, if they are given.
        """
        settings = self.model.spec.settings
        change = partial(cut, dimensions=dimensions, similarity=settings.similarity) if dimensions else None
        return search(self.folder, self.texts, shards, k, self.workers, settings.unit_length, pairs, change)

    def moments(self) -> PassageMoments:
        """Returns the moments of the passages, from which z-scores follow."""
        return passage_moments(self.folder, self.workers, self.model.spec.settings.unit_length)
