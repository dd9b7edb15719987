"""Gathers the passages of all ranks as candidates for each question, and says which of them count as negatives.

A symmetric loss also gathers the questions of all ranks, as candidates for the questions' own passages.

Shapes: n questions and m passages on this rank, W ranks, C = W * m candidates, D dimensions, g gold ids per question.
The first n passages are the questions' own; hard negatives and padding rows follow. Q questions of all ranks, padding
rows included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import pad

from rqa_ray.retriever import distributed
from rqa_ray.retriever.distillation import TeacherScores
from rqa_ray.retriever.matryoshka import cut


@dataclass(frozen=True)
class Askers:
    """The Q questions of all ranks, as candidates for the own passages of this rank's n questions."""

    embeddings: torch.Tensor  # (Q, D) fp32; gradients flow back to the ranks that the questions came from
    gold_ids: torch.Tensor  # (Q, g) int64, all golds of each question
    is_candidate: torch.Tensor  # (Q,) bool, false for padding rows
    labels: torch.Tensor  # (n,) column of the question that each passage belongs to
    passage_ids: torch.Tensor  # (n,) int64
    teacher: ClassVar[None] = None  # a teacher's scores are of the passages of a question

    def masked(self, rows: slice = slice(None)) -> torch.Tensor:
        """Returns (rows, Q) bool: true where a column is padding, or another question with this gold."""
        return _masked(self.is_candidate, self.gold_ids, self.passage_ids[rows, None], self.labels[rows])

    def cut(self, dimensions: int, similarity: str) -> Askers:
        """Returns the same questions with embeddings of fewer dimensions."""
        return replace(self, embeddings=cut(self.embeddings, dimensions, similarity))


@dataclass(frozen=True)
class Candidates:
    """The C passages of all ranks, as the loss of this rank's n questions needs them."""

    embeddings: torch.Tensor  # (C, D) fp32; gradients flow back to the ranks that the passages came from
    ids: torch.Tensor  # (C,) int64 passage ids
    is_candidate: torch.Tensor  # (C,) bool, false for padding rows
    labels: torch.Tensor  # (n,) column of each question's own passage
    gold_ids: torch.Tensor  # (n, g) int64, all golds of each question; short rows repeat a gold
    teacher: TeacherScores | None = None  # of the questions with their passages, whichever rank these are on
    askers: Askers | None = None  # for a loss that `is_symmetric`

    def masked(self, rows: slice = slice(None)) -> torch.Tensor:
        """Returns (rows, C) bool: true where a column is neither a negative of the question nor its own passage."""
        return false_negatives(self.ids, self.is_candidate, self.gold_ids[rows], self.labels[rows])

    def teacher_scores(self, rows: slice = slice(None)) -> torch.Tensor:
        """Returns (rows, C) the teacher's scores, NaN where the teacher has not scored the pair."""
        if self.teacher is None:
            return self.embeddings.new_full((len(self.labels[rows]), len(self.ids)), float("nan"))
        return self.teacher.of(self.ids, rows)

    def with_askers(self, questions: torch.Tensor, most: int) -> Candidates:
        """Gathers the questions of all ranks too, in one collective.

        Args:
            questions: (n, D) embeddings of this rank's questions.
            most: the largest n of all ranks. The number g of gold ids has to be the same on all ranks.
        """
        padding = (0, 0, 0, most - len(questions))
        what_they_are = torch.cat([self.gold_ids, torch.ones_like(self.gold_ids[:, :1])], dim=1)
        gathered = distributed.gather_with_gradient(pad(questions.float(), padding), pad(what_they_are, padding))
        embeddings, numbers = gathered  # (Q, D), (Q, g + 1)
        labels = distributed.rank() * most + torch.arange(len(questions), device=questions.device)
        askers = Askers(embeddings, numbers[:, :-1], numbers[:, -1].bool(), labels, self.ids[self.labels])
        return replace(self, askers=askers)

    def cut(self, dimensions: int, similarity: str) -> Candidates:
        """Returns the same candidates with embeddings of fewer dimensions."""
        askers = self.askers and self.askers.cut(dimensions, similarity)
        return replace(self, embeddings=cut(self.embeddings, dimensions, similarity), askers=askers)


def gather_candidates(
    passages: torch.Tensor,
    passage_ids: torch.Tensor,
    is_passage: torch.Tensor,
    gold_ids: torch.Tensor,
    teacher: TeacherScores | None = None,
) -> Candidates:
    """Gathers the passages of all ranks in one collective. The number m has to be the same on all ranks.

    Args:
        passages: embeddings of the m passages, D dimensions, m >= n; those of padding rows may be left out.
        passage_ids: (m,) int64.
        is_passage: (m,) bool, false for padding rows.
        gold_ids: (n, g) int64.
        teacher: scores of this rank's n questions.
    """
    what_they_are = torch.stack([passage_ids, is_passage.long()], dim=1)
    passages = pad(passages.float(), (0, 0, 0, len(passage_ids) - len(passages)))
    embeddings, numbers = distributed.gather_with_gradient(passages, what_they_are)  # (C, D), (C, 2)
    ids, is_candidate = numbers.unbind(1)
    labels = distributed.rank() * len(passages) + torch.arange(len(gold_ids), device=passages.device)
    return Candidates(embeddings, ids, is_candidate.bool(), labels, gold_ids, teacher)


def false_negatives(
    candidate_ids: torch.Tensor, is_candidate: torch.Tensor, gold_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Returns (n, C) bool: true where a column is padding, or another gold of the question."""
    return _masked(is_candidate, candidate_ids[:, None], gold_ids, labels)


def _masked(
    is_candidate: torch.Tensor, of_columns: torch.Tensor, of_rows: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Returns (n, C) bool: true for padding, and where a column (C, a) and a row (n, b) share an id; false at labels.

    One of a and b is 1.
    """
    masked = (~is_candidate).repeat(len(of_rows), 1)
    for column in of_columns.unbind(dim=1):  # loops, so that memory holds only one (n, C) mask
        for row in of_rows.unbind(dim=1):
            masked |= column[None, :] == row[:, None]
    return masked.scatter_(1, labels[:, None], False)
