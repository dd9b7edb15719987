"""Losses: functions of this rank's questions and all ranks' candidates that return a scalar.

A loss is a module that the class method `of` makes from the settings. It does not know ranks. It leaves out the
columns that `Candidates.masked` marks. It returns the *sum* over its questions, which the caller scales to the mean
over the global batch. It has a `temperature`, which `eval_loss` uses too. It may own parameters: they are trained,
stored in checkpoints, and kept equal on all ranks. A new loss is a class in this file and an entry of `LOSSES`.

Shapes: n questions, C candidates, D dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rqa_ray.loss_settings import LossSettings
from rqa_ray.retriever import distributed
from rqa_ray.retriever.candidates import Candidates
from rqa_ray.retriever.distillation import divergence

MAX_SCORES = 2**24  # scores in one block: 64 MiB, held a few times


class InBatchContrastive(nn.Module):
    """Cross-entropy of each question against all candidates (InfoNCE, van den Oord et al. 2018).

    A teacher's scores replace a share of the cross-entropy by their divergence (`distillation.py`), for the questions
    that have such scores.
    """

    def __init__(self, temperature: float, distill_weight: float = 0.0, teacher_temperature: float = 1.0) -> None:
        """Takes the numbers that divide the scores, and the share of the divergence from the teacher (0 to 1)."""
        super().__init__()
        self.temperature = temperature
        self.distill_weight, self.teacher_temperature = distill_weight, teacher_temperature

    @classmethod
    def of(cls, settings: LossSettings) -> InBatchContrastive:
        """Makes the loss that the settings ask for."""
        return cls(settings.temperature, settings.distill_weight, settings.teacher_temperature)

    def forward(self, questions: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        """Returns the sum over the questions (n, D)."""
        return _Summed.apply(questions.float(), candidates.embeddings, candidates, self)


LOSSES: dict[str, Any] = {"inbatch_contrastive": InBatchContrastive}  # by `--contrastive_loss`


class _Summed(torch.autograd.Function):
    """The loss summed over the questions, computed in blocks of rows of the score matrix.

    The forward pass also computes the gradients, while it has the scores of a block. So memory holds one block,
    whatever the batch size. The idea is from Liger Kernel's fused linear cross-entropy (Hsu et al. 2024).
    """

    @staticmethod
    def forward(ctx, questions, embeddings, candidates, loss):
        total = questions.new_zeros(())
        of_questions, of_candidates = torch.empty_like(questions), torch.zeros_like(embeddings)
        rows_at_once = max(1, MAX_SCORES // len(embeddings))
        for start in range(0, len(questions), rows_at_once):
            block = slice(start, start + rows_at_once)
            own = candidates.labels[block, None]
            scores = (questions[block] @ embeddings.T).div_(loss.temperature)
            scores.masked_fill_(candidates.masked(block), float("-inf"))
            log_shares = scores.log_softmax(dim=1)
            losses = -log_shares.gather(1, own)[:, 0]
            # d losses / d scores: the softmax, minus one at the label
            gradient = log_shares.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=scores.dtype))
            if loss.distill_weight and candidates.teacher:
                far, of_far, is_taught = divergence(
                    scores, candidates.teacher_scores(block), candidates.labels[block], loss.teacher_temperature
                )
                share = is_taught * loss.distill_weight
                losses = (1 - share) * losses + share * far
                gradient.mul_(1 - share[:, None]).add_(of_far.mul_(share[:, None]))
            total += losses.sum()
            gradient.div_(loss.temperature)
            of_questions[block] = gradient @ embeddings
            of_candidates.addmm_(gradient.T, questions[block])
        ctx.save_for_backward(of_questions, of_candidates)
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_questions, of_candidates = ctx.saved_tensors
        return gradient * of_questions, gradient * of_candidates, None, None


def mean_over_global_batch(summed: torch.Tensor, global_batch_size: int) -> torch.Tensor:
    """Scales a rank's sum, so that the mean over ranks is the mean over the global batch.

    DDP averages the gradients over ranks, and the gather sums them. So loss and gradient equal those of one process,
    for any number of questions on a rank.
    """
    return summed * distributed.world_size() / global_batch_size


def start_alike(loss: nn.Module) -> None:
    """Copies the first rank's parameters and buffers of a loss to all ranks, as DDP does for the encoder."""
    with torch.no_grad():
        for value in loss.state_dict().values():
            value.copy_(distributed.gather(value[None])[0])


def average_gradients(loss: nn.Module) -> None:
    """Averages the gradients of a loss's own parameters over all ranks, as DDP does for the encoder."""
    for parameter in loss.parameters():
        # this rank may not have used the parameter
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = distributed.gather(own[None]).mean(0)
