"""Computes the loss of questions against the whole corpus, block by block.

States of blocks and ranks merge in any order.

Shapes: Q questions, N passages of a block, G pairs of a question and one of its golds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class CorpusLoss:
    """Cross-entropy of each question against the whole corpus; other golds of the question are masked.

    Let lse be the logsumexp of score / temperature over all passages that are no gold of the question. A gold with
    score s then has the loss logaddexp(s / temperature, lse) - s / temperature. The state is:

    lse: (Q,) float64, -inf before the first passage.

    gold_scores: (G,) float32, -inf for a gold that has not been added.
    """

    def __init__(self, gold_positions: Sequence[Sequence[int] | np.ndarray], temperature: float, device="cpu"):
        """Takes the positions of each question's golds; a repeated position counts once."""
        golds = [np.unique(np.asarray(row, dtype=np.int64)) for row in gold_positions]
        counts = np.array([len(row) for row in golds], dtype=np.int64)
        flat = np.concatenate([np.empty(0, dtype=np.int64), *golds])
        self.temperature = temperature
        # the pairs of question i: offsets[i] to offsets[i + 1]
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.positions = torch.from_numpy(flat).to(device)
        self.questions = torch.from_numpy(np.repeat(np.arange(len(golds)), counts)).to(device)
        self.lse = torch.full((len(golds),), -torch.inf, dtype=torch.float64, device=device)
        self.gold_scores = torch.full((len(flat),), -torch.inf, device=device)

    def add(self, scores: Tensor, positions: Tensor, first_question: int = 0) -> None:
        """Adds the scores (q, N) of q questions from `first_question` on, for the passages at positions (N,)."""
        if not scores.numel():
            return
        rows = slice(first_question, first_question + len(scores))
        pairs = slice(self.offsets[rows.start], self.offsets[rows.stop])
        ordered, columns = positions.sort()
        nearest = torch.searchsorted(ordered, self.positions[pairs]).clamp_(max=len(ordered) - 1)
        here = (ordered[nearest] == self.positions[pairs]).nonzero().squeeze(1)
        cells = (self.questions[pairs][here] - first_question, columns[nearest[here]])
        self.gold_scores[pairs][here] = scores[cells]

        logits = scores / self.temperature
        logits[cells] = -torch.inf
        # This is logsumexp; torch.logsumexp takes three times as long. If all passages are golds, the clamp keeps -inf
        # - -inf from becoming NaN.
        top = logits.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
        sums = logits.sub_(top).exp_().sum(dim=1).double()
        # fp32 is exact enough within a block; the running sum over many blocks needs float64.
        self.lse[rows] = torch.logaddexp(self.lse[rows], sums.log() + top.squeeze(1))

    def merge(self, lse: Tensor, gold_scores: Tensor) -> None:
        """Merges the state of another rank, which has seen other passages."""
        self.lse = torch.logaddexp(self.lse, lse)
        self.gold_scores = torch.maximum(self.gold_scores, gold_scores)

    def result(self, rows: slice = slice(None)) -> float | None:
        """Returns the mean over the questions `rows` of the mean over their golds; None if no gold was added.

        A gold that was never added does not count.
        """
        lse, gold_scores, questions = self.lse.cpu(), self.gold_scores.cpu().double(), self.questions.cpu()
        start, stop, _ = rows.indices(len(lse))
        seen = (gold_scores > -torch.inf) & (questions >= start) & (questions < stop)
        logits, questions = gold_scores[seen] / self.temperature, questions[seen]
        if not len(questions):
            return None
        losses = torch.logaddexp(logits, lse[questions]) - logits
        num_golds = torch.bincount(questions, minlength=len(lse))
        sums = torch.bincount(questions, losses, minlength=len(lse))
        return float((sums[num_golds > 0] / num_golds[num_golds > 0]).mean())
