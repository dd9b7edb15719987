"""Gathers the passages of all ranks as candidates for each question, and says which of them count as negatives.

Shapes: n questions and m passages on this rank, W ranks, C = W * m candidates, D dimensions, g gold ids per question.
The first n passages are the questions' own; hard negatives and padding rows follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rqa_ray.retriever import distributed
from rqa_ray.retriever.distillation import TeacherScores


@dataclass(frozen=True)
class Candidates:
    """The C passages of all ranks, as the loss of this rank's n questions needs them."""

    embeddings: torch.Tensor  # (C, D) fp32; gradients flow back to the ranks that the passages came from
    ids: torch.Tensor  # (C,) int64 passage ids
    is_candidate: torch.Tensor  # (C,) bool, false for padding rows
    labels: torch.Tensor  # (n,) column of each question's own passage
    gold_ids: torch.Tensor  # (n, g) int64, all golds of each question; short rows repeat a gold
    teacher: TeacherScores | None = None  # of the questions with their passages, whichever rank these are on

    def masked(self, rows: slice = slice(None)) -> torch.Tensor:
        """Returns (rows, C) bool: true where a column is neither a negative of the question nor its own passage."""
        return false_negatives(self.ids, self.is_candidate, self.gold_ids[rows], self.labels[rows])

    def teacher_scores(self, rows: slice = slice(None)) -> torch.Tensor:
        """Returns (rows, C) the teacher's scores, NaN where the teacher has not scored the pair."""
        if self.teacher is None:
            return self.embeddings.new_full((len(self.labels[rows]), len(self.ids)), float("nan"))
        return self.teacher.of(self.ids, rows)


def gather_candidates(
    passages: torch.Tensor,
    passage_ids: torch.Tensor,
    is_passage: torch.Tensor,
    gold_ids: torch.Tensor,
    teacher: TeacherScores | None = None,
) -> Candidates:
    """Gathers the passages of all ranks in one collective. The number m has to be the same on all ranks.

    Args:
        passages: (m, D) embeddings, m >= n.
        passage_ids: (m,) int64.
        is_passage: (m,) bool, false for padding rows.
        gold_ids: (n, g) int64.
        teacher: scores of this rank's n questions.
    """
    what_they_are = torch.stack([passage_ids, is_passage.long()], dim=1)
    embeddings, numbers = distributed.gather_with_gradient(passages.float(), what_they_are)  # (C, D), (C, 2)
    ids, is_candidate = numbers.unbind(1)
    labels = distributed.rank() * len(passages) + torch.arange(len(gold_ids), device=passages.device)
    return Candidates(embeddings, ids, is_candidate.bool(), labels, gold_ids, teacher)


def false_negatives(
    candidate_ids: torch.Tensor, is_candidate: torch.Tensor, gold_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Returns (n, C) bool: true where a column is padding, or another gold of the question."""
    masked = (~is_candidate).repeat(len(gold_ids), 1)
    for column in gold_ids.unbind(dim=1):  # a loop over g, so that memory holds only one (n, C) mask
        masked |= candidate_ids[None, :] == column[:, None]
    return masked.scatter_(1, labels[:, None], False)
