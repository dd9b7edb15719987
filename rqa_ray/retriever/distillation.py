"""Distillation: how far the student's shares of a question's candidates are from the teacher's.

The teacher has scored some pairs of a question and a passage: the question's own passage and its hard negatives. The
divergence is listwise (Kullback-Leibler), over the columns that the teacher has scored, as in RocketQAv2 (Ren et al.
2021). The teacher may be wrong about labels, so the score of the question's own passage counts as at least the highest
score of the others: the own passage is never pushed below another passage.

Shapes: n questions, s scored passages of a question, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TeacherScores:
    """The passages that a teacher has scored for each question, by id. Short rows repeat a pair."""

    ids: torch.Tensor  # (n, s) int64
    scores: torch.Tensor  # (n, s) fp32, NaN where the teacher has no score

    def to(self, device: torch.device) -> TeacherScores:
        """Returns the same scores on a device."""
        return TeacherScores(self.ids.to(device, non_blocking=True), self.scores.to(device, non_blocking=True))

    def of(self, candidate_ids: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns (rows, C) the scores of some questions with the candidates (C,); NaN where there is none."""
        ids, scores = self.ids[rows], self.scores[rows]
        found = scores.new_full((len(ids), len(candidate_ids)), float("nan"))
        for id, score in zip(ids.unbind(1), scores.unbind(1), strict=True):
            found = torch.where(candidate_ids[None, :] == id[:, None], score[:, None], found)
        return found


def divergence(
    scores: torch.Tensor, of_teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the divergence (n,), its gradient (n, C) by the student's scores, and whether a question is taught (n,).

    A question is taught if the teacher has scored a candidate beside the question's own passage.

    Args:
        scores: (n, C) of the student, -inf where a column is masked.
        of_teacher: (n, C), NaN where there is none.
        labels: (n,) column of each question's own passage.
        temperature: divides the teacher's scores.
    """
    own, lowest = labels[:, None], float("-inf")
    is_scored = ~of_teacher.isnan() & (scores != lowest)
    highest = of_teacher.masked_fill(~is_scored, lowest).amax(1, keepdim=True)
    is_scored = is_scored.scatter(1, own, True)
    # where the teacher has scored nothing, any number will do
    wanted = of_teacher.scatter(1, own, highest.nan_to_num(neginf=0.0)).masked_fill_(~is_scored, lowest)
    log_wanted = wanted.div_(temperature).log_softmax(1)
    log_shares = scores.masked_fill(~is_scored, lowest).log_softmax(1)
    shares = log_wanted.exp()
    total = (log_wanted - log_shares).masked_fill_(~is_scored, 0.0).mul_(shares).sum(1)
    return total, log_shares.exp_().sub_(shares), is_scored.sum(1) > 1
