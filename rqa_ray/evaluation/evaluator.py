"""Evaluates retrieval on the full corpus during training: encode, search, metrics; exact, shared by all ranks.

Every rank encodes its share of the corpus block by block, and keeps a running top k for every question. The ranks then
merge these states, so all end with the same numbers. One pass over the corpus serves the questions of all splits.
Memory holds one block and the running top k.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from rqa_ray.corpus.corpus_loss import CorpusLoss
from rqa_ray.corpus.topk import EMPTY, RunningTopK, search_block
from rqa_ray.data.rows import Corpus, Questions
from rqa_ray.evaluation.metrics import LATENCY, RECALL_CUTOFFS, retrieval_metrics
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.retriever import distributed
from rqa_ray.retriever.embedder import Embedder

TOP_K = max(RECALL_CUTOFFS)
TEXTS_PER_BLOCK = 4096


class RetrievalEvaluator:
    """Evaluates an embedder on the questions of each split, against one corpus."""

    def __init__(
        self,
        corpus: Corpus,
        questions: dict[str, Questions],
        embedder: Embedder,
    ) -> None:
        self.corpus, self.questions, self.embedder = corpus, questions, embedder
        # called with the number of texts that this rank has encoded, and of all
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        by_id = np.argsort(corpus.passage_ids)
        self._gold_positions = [
            positions_of(golds, corpus.passage_ids, by_id) for part in questions.values() for golds in part.golds
        ]
        self._by_text = np.argsort(corpus.text_of, kind="stable")  # passages, sorted by their text
        self._first_of_text = np.searchsorted(corpus.text_of[self._by_text], np.arange(len(corpus.tokens) + 1))

    def evaluate(self, temperature: float) -> Evaluation:
        """Returns the evaluation, the same on all ranks. All ranks have to call it together.

        `temperature` is the temperature of the loss.

        Raises:
            Interrupted: on all ranks, see `interrupts.py`.
        """
        encoder = self.embedder.encoder
        was_training = encoder.training
        encoder.eval()
        try:
            with torch.inference_mode():
                return self._evaluate(temperature)
        finally:
            encoder.train(was_training)

    def _evaluate(self, temperature: float) -> Evaluation:
        encoder = self.embedder.encoder
        device = next(encoder.parameters()).device
        rows = [row for part in self.questions.values() for row in part.tokens]
        self._done, self._total = 0, -(-len(rows) // distributed.world_size())
        started = _now(device)
        questions = self._embed_questions(rows)
        search_seconds = _now(device) - started

        topk = RunningTopK(len(rows), min(TOP_K, len(self.corpus)), device)
        loss = CorpusLoss(self._gold_positions, temperature, device)
        with encoder.interrupts.part(device):
            search_seconds += self._search(questions, topk, loss)
        _merge_ranks(topk, loss)
        slowest = distributed.gather(torch.tensor([search_seconds], device=device)).max().item()
        return self._results(topk, loss, slowest / len(rows))

    def _search(self, questions: torch.Tensor, topk: RunningTopK, loss: CorpusLoss) -> float:
        """Searches this rank's share of the corpus; returns how long that took, without encoding (seconds)."""
        device, seconds = questions.device, 0.0
        tokens = self.corpus.tokens
        mine = np.argsort(tokens.lengths, kind="stable")[distributed.rank() :: distributed.world_size()]
        self._done, self._total = 0, len(mine)
        for start in range(0, len(mine), TEXTS_PER_BLOCK):
            texts = mine[start : start + TEXTS_PER_BLOCK]
            embeddings = self.embedder.rows([tokens[text] for text in texts], self._on_batch)
            counts = self._first_of_text[texts + 1] - self._first_of_text[texts]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            positions = self._by_text[np.repeat(self._first_of_text[texts], counts) + within]
            passages = embeddings[torch.from_numpy(np.repeat(np.arange(len(texts)), counts)).to(device)]
            started = _now(device)
            search_block(questions, passages, torch.from_numpy(positions).to(device), topk, loss)
            seconds += _now(device) - started
        return seconds

    def _results(self, topk: RunningTopK, loss: CorpusLoss, latency: float) -> Evaluation:
        scores, positions = (part.cpu().numpy() for part in topk.result())
        results, start = {}, 0
        for split, part in self.questions.items():
            rows = slice(start, start + len(part))
            start += len(part)
            metrics = retrieval_metrics(self.corpus.passage_ids[positions[rows]], part.golds)
            metrics[LATENCY] = latency
            corpus_loss = loss.result(rows)
            if corpus_loss is not None:
                metrics["loss"] = corpus_loss
            results[split] = SplitResult(metrics, scores[rows], positions[rows])
        return Evaluation(results)

    def _embed_questions(self, rows: list[np.ndarray]) -> torch.Tensor:
        """Returns (Q, D): each of the W ranks encodes every W-th question, and all ranks get all."""
        world_size = distributed.world_size()
        # the gather needs the same number of rows from every rank
        padded = rows + [rows[-1]] * (-len(rows) % world_size)
        encoder = self.embedder.encoder
        with encoder.interrupts.part(next(encoder.parameters()).device):
            own = self.embedder.rows(padded[distributed.rank() :: world_size], self._on_batch)
        share = distributed.gather(own)
        return share.view(world_size, -1, share.shape[1]).transpose(0, 1).flatten(0, 1)[: len(rows)]

    def _on_batch(self, num_rows: int) -> None:
        self._done += num_rows
        self.on_progress(self._done, self._total)


def positions_of(golds: np.ndarray, passage_ids: np.ndarray, by_id: np.ndarray) -> np.ndarray:
    """Returns the corpus positions of the golds that are in the corpus."""
    places = np.searchsorted(passage_ids, golds, sorter=by_id)
    places = by_id[np.minimum(places, len(by_id) - 1)]
    return places[passage_ids[places] == golds]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # waits for the work that was queued before
    return time.perf_counter()


def _merge_ranks(topk: RunningTopK, loss: CorpusLoss) -> None:
    """Merges the states of all ranks in the order of ranks, so that all ranks end with the same bits."""
    if not distributed.is_distributed():
        return
    world_size = distributed.world_size()
    keys = distributed.gather(topk.keys).view(world_size, *topk.keys.shape)
    lse = distributed.gather(loss.lse).view(world_size, -1)
    gold_scores = distributed.gather(loss.gold_scores).view(world_size, -1)
    topk.keys.fill_(EMPTY)
    loss.lse.fill_(-torch.inf)
    loss.gold_scores.fill_(-torch.inf)
    for rank in range(world_size):
        topk.merge(keys[rank])
        loss.merge(lse[rank], gold_scores[rank])
