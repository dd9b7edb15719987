"""The passages that a question is compared with: those of all ranks, gathered, with what says which of them count.

Shapes: n questions and m passages on this rank (the first n passages are the questions' own, hard negatives and
padding rows follow), W ranks, C = W * m candidates, D dimensions, g gold ids a question.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rqa_ray.retriever import distributed


@dataclass(frozen=True)
class Candidates:
    """The C passages of all ranks, as the loss of this rank's n questions sees them."""

    embeddings: torch.Tensor  # (C, D) fp32; their gradients flow back to the ranks that they came from
    ids: torch.Tensor  # (C,) int64 identities
    is_candidate: torch.Tensor  # (C,) bool, false for padding rows
    labels: torch.Tensor  # (n,) the column of each question's own passage
    gold_ids: torch.Tensor  # (n, g) int64, all golds of each question, short rows filled with a repeated gold
    teacher_scores: torch.Tensor | None = None  # (n, C), NaN where the teacher has not scored the pair

    def masked(self, rows: slice = slice(None)) -> torch.Tensor:
        """(rows, C) bool: the columns that are no negative of these questions, nor their own passage."""
        return false_negatives(self.ids, self.is_candidate, self.gold_ids[rows], self.labels[rows])


def gather_candidates(
    passages: torch.Tensor, passage_ids: torch.Tensor, is_passage: torch.Tensor, gold_ids: torch.Tensor
) -> Candidates:
    """The passages of all ranks, in one collective. The number m has to be equal on all ranks.

    Args:
        passages: (m, D) embeddings, m >= n.
        passage_ids: (m,) int64 identities.
        is_passage: (m,) bool, false for padding rows.
        gold_ids: (n, g) int64.
    """
    what_they_are = torch.stack([passage_ids, is_passage.long()], dim=1)
    embeddings, numbers = distributed.gather_with_gradient(passages.float(), what_they_are)  # (C, D), (C, 2)
    ids, is_candidate = numbers.unbind(1)
    labels = distributed.rank() * len(passages) + torch.arange(len(gold_ids), device=passages.device)
    return Candidates(embeddings, ids, is_candidate.bool(), labels, gold_ids)


def false_negatives(
    candidate_ids: torch.Tensor, is_candidate: torch.Tensor, gold_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """(n, C) bool: columns that are padding, or a gold of the row's question other than its own label's column."""
    masked = (~is_candidate).repeat(len(gold_ids), 1)
    for column in gold_ids.unbind(dim=1):  # a loop over g keeps the memory at one (n, C) mask
        masked |= candidate_ids[None, :] == column[:, None]
    return masked.scatter_(1, labels[:, None], False)
