"""Ranks a corpus for questions with a model, with BM25, or with both.

Shapes: Q questions, K retrieved passages per question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.bm25 import Bm25, Hybrid, Weight
from rqa_ray.corpus.encoded import Encoded, embedding_folder
from rqa_ray.corpus.model import Model
from rqa_ray.corpus.plan import CorpusPlan
from rqa_ray.corpus.shards import QUESTIONS_FOLDER, EmbeddingFolder
from rqa_ray.corpus_settings import EvaluateSettings
from rqa_ray.data.rows import Questions
from rqa_ray.evaluation.evaluated import Result
from rqa_ray.evaluation.evaluator import TOP_K
from rqa_ray.evaluation.hybrid_weight import choose_weight
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, TOP_CUTOFF, name_at, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions


class Retrievers:
    """Ranks the corpus for the questions with each retriever; makes once what several retrievers need."""

    def __init__(
        self,
        settings: EvaluateSettings,
        model: Model,
        workers: Workers,
        inputs: dict[str, list[str]],
        plan: CorpusPlan,
        asked: Mapping[str, AskedQuestions],
        dimensions: Sequence[int],
    ) -> None:
        """Takes the files, the plan and the questions by name, and to how many dimensions embeddings are cut."""
        self.settings, self.inputs, self.plan, self.asked = settings, inputs, plan, asked
        self.dimensions = dimensions
        self.folder = embedding_folder(settings)
        texts = EmbeddingFolder(str(Path(settings.output_dir) / QUESTIONS_FOLDER))
        self.encoded = Encoded(model, self.folder, texts, workers)
        self.k = min(TOP_K, len(plan.passage_ids))
        self._bm25: Bm25 | None = None

    def embed(self, questions: dict[str, Questions]) -> None:
        """Encodes the questions and passages that are not encoded yet."""
        tokens = {name: part.tokens for name, part in questions.items()}
        overwrite = self.settings.overwrite_output_dir and not self.settings.embeddings_path
        self.encoded.encode(self.inputs["corpus"], self.plan, tokens, self.settings.bf16, overwrite)

    def result(self, name: str) -> Result:
        """Returns what a retriever finds for the test questions."""
        test, latency, weight = self.asked["test"], None, None
        of_cut: dict[str, np.ndarray] = {}
        if name == "dense":
            shards = self.encoded.shards["test"]
            scores, positions, seconds = self.encoded.search(shards, self.k)
            latency = (seconds + self.encoded.texts.logged_seconds(shards)) / len(test.questions)
            of_cut = self._of_cut(shards)
        elif name == "bm25":
            scores, positions = self.bm25().rank(test.questions, self.k)
        else:
            passages = [block.embeddings for block in self.folder.blocks([shard.name for shard in self.folder.shards])]
            hybrid = Hybrid(self.bm25(), torch.cat(passages))
            chosen = self._weight(hybrid)
            print(chosen.describe())
            weight = chosen.value
            embeddings = self.encoded.embeddings("test")
            scores, positions = hybrid.rank(test.questions, embeddings, [weight], self.k)[weight]
        values = question_metrics(self.plan.passage_ids[positions], test.gold_ids) | of_cut
        return Result(values, (scores, positions), latency, weight)

    def _of_cut(self, shards: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns (Q,) values of the metrics `HEADLINES` of cut embeddings, by name."""
        test, values = self.asked["test"], dict[str, np.ndarray]()
        for number in self.dimensions:
            _, positions, _ = self.encoded.search(shards, min(TOP_CUTOFF, self.k), dimensions=number)
            found = question_metrics(self.plan.passage_ids[positions], test.gold_ids)
            values |= {name_at(label, number): found[LABELS[label]] for label in HEADLINES}
        return values

    def _weight(self, hybrid: Hybrid) -> Weight:
        """Returns the weight that the user gives, or lets choose, or that the model has; else one half."""
        given, other = self.settings.hybrid_weight, self.asked.get("weight")
        if given is None and other:
            embeddings = self.encoded.embeddings("weight")
            weight = choose_weight(hybrid, other.questions, embeddings, other.gold_ids, self.plan.passage_ids)
            return Weight(weight, "chosen on --weight_data_path")
        known = Weight.of(given, self.encoded.model.spec.folder)
        return known or Weight(0.5, "as nothing chose them; --weight_data_path would choose")

    def bm25(self) -> Bm25:
        self._bm25 = self._bm25 or Bm25([document.fmt_content for document in self.plan.documents()])
        return self._bm25

    def documents(self, positions: np.ndarray) -> Callable[[int], dict[str, Any]]:
        """Returns the documents at some positions."""
        if self.encoded.shards:
            return self.folder.documents(positions).__getitem__
        wanted = set(positions.ravel().tolist())
        every = enumerate(self.plan.documents())
        return {place: document.to_dict() for place, document in every if place in wanted}.__getitem__
