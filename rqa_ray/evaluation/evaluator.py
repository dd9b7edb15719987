"""Evaluates retrieval on the full corpus during training: encode, search, metrics; exact, shared by all ranks.

Every rank encodes its share of the corpus block by block, and keeps a running top k for every question. The ranks then
merge these states, so all end with the same numbers. One pass over the corpus serves the questions of all splits.
Memory holds one block and the running top k.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from rqa_ray.corpus.corpus_loss import CorpusLoss
from rqa_ray.corpus.topk import EMPTY, RunningTopK, search_block
from rqa_ray.data.distinct import places_of
from rqa_ray.data.rows import Corpus, Questions, fingerprint
from rqa_ray.evaluation.hybrid_scores import HybridScores
from rqa_ray.evaluation.metrics import (
    HEADLINES,
    LABELS,
    LATENCY,
    RECALL_CUTOFFS,
    TOP_CUTOFF,
    name_at,
    retrieval_metrics,
)
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.retriever import distributed
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.matryoshka import cut

TOP_K = max(RECALL_CUTOFFS)
TEXTS_PER_BLOCK = 4096


class CorpusPass(Protocol):
    """Something that sees the embeddings of the whole corpus once, each rank those of its share."""

    def begin(self) -> None:
        """Is called before the first passage."""

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        """Takes a block of passages: embeddings (N, D) and positions (N,)."""

    def end(self) -> None:
        """Is called after the last passage; merges what the ranks have found."""


class RetrievalEvaluator:
    """Evaluates an embedder on the questions of each split, against one corpus."""

    def __init__(
        self,
        corpus: Corpus,
        questions: dict[str, Questions],
        embedder: Embedder,
        found_by_bm25: dict[str, np.ndarray] | None = None,
        dimensions: Sequence[int] = (),
    ) -> None:
        """Takes the positions (Q, K) of BM25's best passages by split, if a hybrid is wanted too.

        `dimensions` are numbers of dimensions to which embeddings are cut, for the metrics `HEADLINES` of each.
        """
        self.corpus, self.questions, self.embedder = corpus, questions, embedder
        self.dimensions = dimensions
        self.asked = {split: fingerprint(part, corpus) for split, part in questions.items()}
        found = [found_by_bm25[split] for split in questions] if found_by_bm25 else []
        self.found_by_bm25 = np.concatenate(found) if found else None
        # called with the number of texts that this rank has encoded, and of all
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        self.gold_positions = [
            places[places >= 0]  # those that the corpus has
            for golds in (part.golds for part in questions.values())
            for places in np.split(places_of(golds.ids, corpus.passage_ids), golds.offsets[1:-1])
        ]
        self._by_text = np.argsort(corpus.text_of, kind="stable")  # passages, sorted by their text
        self._first_of_text = np.searchsorted(corpus.text_of[self._by_text], np.arange(len(corpus.tokens) + 1))

    @property
    def device(self) -> torch.device:
        """The device of the embeddings."""
        return next(self.embedder.encoder.parameters()).device

    def evaluate(self, temperature: float, *others: CorpusPass) -> Evaluation:
        """Returns the evaluation, the same on all ranks. All ranks have to call it together.

        `temperature` is the temperature of the loss. `others` see the same embeddings of the corpus.

        Raises:
            Interrupted: on all ranks, see `interrupts.py`.
        """
        ranking = _Ranking(self, temperature)
        self.look_through(ranking, *others)
        return ranking.results()

    def look_through(self, *passes: CorpusPass) -> None:
        """Encodes the corpus once for all passes, each rank its share. All ranks have to call it together.

        Raises:
            Interrupted: on all ranks.
        """
        encoder = self.embedder.encoder
        was_training = encoder.training
        encoder.eval()
        try:
            with torch.inference_mode():
                for one in passes:
                    one.begin()
                with encoder.interrupts.part(self.device):
                    for passages, positions in self._blocks():
                        for one in passes:
                            one.add(passages, positions)
                for one in passes:
                    one.end()
        finally:
            encoder.train(was_training)

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Encodes this rank's share of the corpus; yields embeddings (N, D) and positions (N,)."""
        tokens = self.corpus.tokens
        mine = np.argsort(tokens.lengths, kind="stable")[distributed.rank() :: distributed.world_size()]
        self._done, self._total = 0, len(mine)
        most = -(-len(tokens) // distributed.world_size())  # as many blocks on each rank, because ranks may be in step
        for start in range(0, most, TEXTS_PER_BLOCK):
            texts = mine[start : start + TEXTS_PER_BLOCK]
            embeddings = self.embedder.rows([tokens[text] for text in texts], self._on_batch)
            if not len(texts):  # this rank has one block fewer than others
                break
            counts = self._first_of_text[texts + 1] - self._first_of_text[texts]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            positions = self._by_text[np.repeat(self._first_of_text[texts], counts) + within]
            places = torch.from_numpy(np.repeat(np.arange(len(texts)), counts)).to(embeddings.device)
            yield embeddings[places], torch.from_numpy(positions).to(embeddings.device)

    def embed(self, rows: list[np.ndarray]) -> torch.Tensor:
        """Returns (n, D) of n token rows: each of the W ranks encodes every W-th row, and all ranks get all."""
        world_size = distributed.world_size()
        self._done, self._total = 0, -(-len(rows) // world_size)
        # the gather needs the same number of rows from every rank
        padded = rows + [rows[-1]] * (-len(rows) % world_size)
        with self.embedder.encoder.interrupts.part(self.device):
            own = self.embedder.rows(padded[distributed.rank() :: world_size], self._on_batch)
        share = distributed.gather(own)
        return share.view(world_size, -1, share.shape[1]).transpose(0, 1).flatten(0, 1)[: len(rows)]

    def _on_batch(self, num_rows: int) -> None:
        self._done += num_rows
        self.on_progress(self._done, self._total)


class _Ranking:
    """Finds the best passages for the questions of all splits, and their loss against the corpus."""

    def __init__(self, evaluator: RetrievalEvaluator, temperature: float) -> None:
        self.evaluator, self.temperature = evaluator, temperature

    def begin(self) -> None:
        device, rows = (
            self.evaluator.device,
            [row for part in self.evaluator.questions.values() for row in part.tokens],
        )
        started = _now(device)
        self.questions = self.evaluator.embed(rows)
        self.seconds = _now(device) - started  # the encoding of the corpus left out
        self.topk = RunningTopK(len(rows), min(TOP_K, len(self.evaluator.corpus)), device)
        self.loss = CorpusLoss(self.evaluator.gold_positions, self.temperature, device)
        self.cut_questions = {number: self._cut(self.questions, number) for number in self.evaluator.dimensions}
        k = min(TOP_CUTOFF, len(self.evaluator.corpus))
        self.cut_topk = {number: RunningTopK(len(rows), k, device) for number in self.evaluator.dimensions}
        found = self.evaluator.found_by_bm25
        self.hybrid = None if found is None else HybridScores(self.questions, found)

    def add(self, passages: torch.Tensor, positions: torch.Tensor) -> None:
        started = _now(passages.device)
        search_block(self.questions, passages, positions, self.topk, self.loss)
        self.seconds += _now(passages.device) - started
        for number, topk in self.cut_topk.items():
            search_block(self.cut_questions[number], self._cut(passages, number), positions, topk)
        if self.hybrid:
            self.hybrid.add(passages, positions)

    def _cut(self, embeddings: torch.Tensor, dimensions: int) -> torch.Tensor:
        return cut(embeddings, dimensions, self.evaluator.embedder.encoder.settings.similarity)

    def end(self) -> None:
        for topk in (self.topk, *self.cut_topk.values()):
            merge_topk(topk)
        merge_loss(self.loss)
        if self.hybrid:
            self.hybrid.merge()

    def results(self) -> Evaluation:
        scores, positions = (part.cpu().numpy() for part in self.topk.result())
        seconds = distributed.gather(torch.tensor([self.seconds], device=self.evaluator.device)).max().item()
        cut_positions = {number: topk.result()[1].cpu().numpy() for number, topk in self.cut_topk.items()}
        results, start = {}, 0
        for split, part in self.evaluator.questions.items():
            rows = slice(start, start + len(part))
            start += len(part)
            metrics = retrieval_metrics(self.evaluator.corpus.passage_ids[positions[rows]], part.golds)
            metrics[LATENCY] = seconds / len(self.questions)
            corpus_loss = self.loss.result(rows)
            if corpus_loss is not None:
                metrics["loss"] = corpus_loss
            for number, found in cut_positions.items():
                of_cut = retrieval_metrics(self.evaluator.corpus.passage_ids[found[rows]], part.golds)
                metrics |= {name_at(label, number): of_cut[LABELS[label]] for label in HEADLINES}
            of_bm25 = self.hybrid.result(rows) if self.hybrid else None
            asked = self.evaluator.asked[split]
            results[split] = SplitResult(metrics, scores[rows], positions[rows], of_bm25, asked)
        return Evaluation(results)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # waits for the work that was queued before
    return time.perf_counter()


def merge_topk(topk: RunningTopK) -> None:
    """Merges the best passages of all ranks in the order of ranks, so that all ranks end with the same bits."""
    if not distributed.is_distributed():
        return
    keys = distributed.gather(topk.keys).view(distributed.world_size(), *topk.keys.shape)
    topk.keys.fill_(EMPTY)
    for part in keys:
        topk.merge(part)


def merge_loss(loss: CorpusLoss) -> None:
    """Merges what all ranks have seen of the corpus, in the order of ranks too."""
    if not distributed.is_distributed():
        return
    world_size = distributed.world_size()
    lse = distributed.gather(loss.lse).view(world_size, -1)
    gold_scores = distributed.gather(loss.gold_scores).view(world_size, -1)
    loss.lse.fill_(-torch.inf)
    loss.gold_scores.fill_(-torch.inf)
    for rank in range(world_size):
        loss.merge(lse[rank], gold_scores[rank])
