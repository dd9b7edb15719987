"""Losses: functions of this rank's questions and all ranks' candidates that return a scalar.

A loss is a module that the class method `of` makes from the settings. It does not know ranks. It leaves out the
columns that `masked` marks. It returns the *sum* over its questions, which the caller scales to the mean over the
global batch. It has a `temperature`, which `eval_loss` uses too. It may own parameters: they are trained, stored in
checkpoints, and kept equal on all ranks. A new loss is a class in this file and an entry of `LOSSES`.

The trainer also looks for two attributes. `learning_rate` is that of the loss's own parameters, if it is another than
that of the weights. If a loss `is_symmetric`, its candidates have `askers`: the questions of all ranks.

Shapes: n questions, C candidates, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rqa_ray.loss_settings import LEARNED_TEMPERATURES, OF_WIDE_SCORES, LossSettings
from rqa_ray.retriever import distributed
from rqa_ray.retriever.candidates import Askers, Candidates
from rqa_ray.retriever.distillation import divergence
from rqa_ray.retriever.matryoshka import cut

MAX_SCORES = 2**24  # scores in one block: 64 MiB, held a few times
LOG_BOUNDS = [math.log(bound) for bound in LEARNED_TEMPERATURES]


class InBatchContrastive(nn.Module):
    """Cross-entropy of each question against all candidates (InfoNCE, van den Oord et al. 2018).

    A teacher's scores replace a share of the cross-entropy by their divergence (`distillation.py`), for the questions
    that have such scores. If the loss `is_symmetric`, it is the mean of two directions, as in CLIP (Radford et al.
    2021): the other is the cross-entropy of each question's own passage against the questions of all ranks.

    A learned temperature is trained by its logarithm, within the bounds `LEARNED_TEMPERATURES`.
    """

    learning_rate = 0.01  # of the logarithm of the temperature: a step of Adam changes the temperature by about 1%

    def __init__(
        self,
        temperature: float,
        distill_weight: float = 0.0,
        teacher_temperature: float = OF_WIDE_SCORES,
        is_symmetric: bool = False,
        learns_temperature: bool = False,
    ) -> None:
        """Takes the numbers that divide the scores, and the share of the divergence from the teacher (0 to 1)."""
        super().__init__()
        self.distill_weight, self.teacher_temperature = distill_weight, teacher_temperature
        self.is_symmetric = is_symmetric
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log()) if learns_temperature else None
        self._temperature = temperature

    @classmethod
    def of(cls, settings: LossSettings) -> InBatchContrastive:
        """Makes the loss that the settings ask for."""
        teacher = settings.distill_weight, settings.teacher_temperature or OF_WIDE_SCORES
        return cls(settings.temperature, *teacher, settings.symmetric_loss, settings.learn_temperature)

    @property
    def temperature(self) -> float | torch.Tensor:
        """The number that divides the scores; a tensor with a gradient if it is learned."""
        if self.log_temperature is None:
            return self._temperature
        return self.log_temperature.clamp(*LOG_BOUNDS).exp()

    def forward(self, questions: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        """Returns the sum over the questions (n, D)."""
        if self.log_temperature is not None:
            # Beyond a bound, the gradient would be 0, and the parameter would stay there. `data` is changed, because
            # Matryoshka calls this twice before the backward pass, and the second time changes nothing.
            self.log_temperature.data.clamp_(*LOG_BOUNDS)
        temperature = self.temperature
        total = self.summed(questions.float() / temperature, candidates)
        if not self.is_symmetric:
            return total
        assert candidates.askers is not None
        passages = candidates.embeddings[candidates.labels]
        return (total + self.summed(passages / temperature, candidates.askers)) / 2

    def summed(self, rows: torch.Tensor, candidates: Candidates | Askers) -> torch.Tensor:
        """Returns the sum of one direction over rows (n, D), which are divided by the temperature."""
        return _Summed.apply(rows, candidates.embeddings, candidates, self)


LOSSES: dict[str, Any] = {"inbatch_contrastive": InBatchContrastive}  # by `--contrastive_loss`


class Matryoshka(nn.Module):
    """The weighted sum of a loss over several numbers of dimensions to which embeddings are cut.

    As in sentence-transformers' `MatryoshkaLoss`, a weight is 1 if none is given.
    """

    def __init__(
        self, loss: Any, dimensions: Sequence[int], weights: Sequence[float] | None = None, similarity: str = "cosine"
    ) -> None:
        super().__init__()
        self.loss, self.similarity = loss, similarity
        self.weights = dict(zip(dimensions, weights or [1.0] * len(dimensions), strict=True))  # by dimensions
        self.is_symmetric = getattr(loss, "is_symmetric", False)
        self.learning_rate = getattr(loss, "learning_rate", None)

    @property
    def temperature(self) -> float | torch.Tensor:
        """The temperature of the loss, which all dimensions share."""
        return self.loss.temperature

    def forward(self, questions: torch.Tensor, candidates: Candidates) -> torch.Tensor:
        """Returns the sum over the questions (n, D)."""
        total = questions.new_zeros(())
        for number, weight in self.weights.items():
            few = cut(questions.float(), number, self.similarity)
            total = total + weight * self.loss(few, candidates.cut(number, self.similarity))
        return total


def make_loss(settings: LossSettings, similarity: str) -> Any:
    """Makes the loss of a training run, whose embeddings are compared by cosine or by dot."""
    loss = LOSSES[settings.contrastive_loss].of(settings)
    if not settings.matryoshka_dims:
        return loss
    return Matryoshka(loss, settings.matryoshka_dims, settings.matryoshka_weights, similarity)


class _Summed(torch.autograd.Function):
    """The loss summed over the rows of the score matrix, computed in blocks of rows.

    The forward pass also computes the gradients, while it has the scores of a block. So memory holds one block,
    whatever the batch size. The idea is from Liger Kernel's fused linear cross-entropy (Hsu et al. 2024).
    """

    @staticmethod
    def forward(ctx, rows, embeddings, candidates, loss):
        total = rows.new_zeros(())
        of_rows, of_candidates = torch.empty_like(rows), torch.zeros_like(embeddings)
        rows_at_once = max(1, MAX_SCORES // len(embeddings))
        for start in range(0, len(rows), rows_at_once):
            block = slice(start, start + rows_at_once)
            own = candidates.labels[block, None]
            scores = (rows[block] @ embeddings.T).masked_fill_(candidates.masked(block), float("-inf"))
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
            of_rows[block] = gradient @ embeddings
            of_candidates.addmm_(gradient.T, rows[block])
        ctx.save_for_backward(of_rows, of_candidates)
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_rows, of_candidates = ctx.saved_tensors
        return gradient * of_rows, gradient * of_candidates, None, None


def temperature_of(loss: Any) -> float:
    """Returns the temperature of a loss as a number; a loss may compute it from a parameter."""
    return float(torch.as_tensor(loss.temperature).detach())


def parameter_groups(loss: nn.Module) -> list[dict[str, Any]]:
    """Returns the parameters of a loss, if it has some, as an optimizer takes them: without weight decay."""
    parameters, rate = list(loss.parameters()), getattr(loss, "learning_rate", None)
    group = {"params": parameters, "weight_decay": 0.0, **({"lr": rate} if rate else {})}
    return [group] if parameters else []


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
