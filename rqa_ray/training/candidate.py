"""The candidates of a finish: the weights that a run may leave, and how they are made of those of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

StateDict = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """Weights that a run may leave: a share of the mean of some steps, and the rest from the pretrained model."""

    steps: tuple[int, ...] = ()  # none: the pretrained model
    share: float = 1.0

    def __str__(self) -> str:
        if not self.steps:
            return "step 0 (pretrained)"
        several = len(self.steps) > 1
        tuned = f"mean of steps {', '.join(map(str, self.steps))}" if several else f"step {self.steps[0]}"
        if self.share == 1:
            return tuned
        return f"mixture of {self.share:g} x {tuned} and {1 - self.share:.2g} x step 0"

    @property
    def key(self) -> str:
        """The name of the candidate's folder in storage."""
        share = f"-share-{self.share:g}" if self.share < 1 else ""
        return f"candidate-{'-'.join(map(str, self.steps or (0,)))}{share}"

    @property
    def step(self) -> int:
        """The last step that the candidate needs, 0 for the pretrained model."""
        return max(self.steps, default=0)

    @property
    def is_merged(self) -> bool:
        """Whether the weights are a mean or a mixture, and not those of a step."""
        return self.share < 1 or len(self.steps) > 1

    def movement(self) -> tuple[float, int, int]:
        """Returns by what candidates are sorted: the first has moved least from the pretrained weights."""
        return self.share if self.steps else 0.0, -len(self.steps), self.step


BASE = Candidate()


def mix(parts: Sequence[tuple[float, StateDict]]) -> dict[str, torch.Tensor]:
    """Returns the weighted sum of models' tensors, computed in fp32 in the given order, in the type that they had.

    Tensors of whole numbers, such as position ids, are those of the first model.

    Raises:
        ValueError: the models have other tensors or shapes.
    """
    first = parts[0][1]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for _, state in parts]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("only models with the same tensors can be mixed")
    mixed = {}
    for name, tensor in first.items():
        mixed[name] = tensor
        if tensor.is_floating_point():
            total = torch.zeros_like(tensor, dtype=torch.float32)
            for share, state in parts:
                total += share * state[name].float()
            mixed[name] = total.to(tensor.dtype)
    return mixed


class Weights:
    """Makes the weights of candidates, from those of the pretrained model and of steps."""

    def __init__(self, base: StateDict, of_step: Callable[[int], StateDict]) -> None:
        self.base, self.of_step = base, of_step
        self._steps: tuple[int, ...] = ()  # whose mean is kept, because all mixtures are made of one
        self._tuned: StateDict = base

    def of(self, candidate: Candidate) -> StateDict:
        """Returns the tensors of a candidate by name."""
        if not candidate.steps:
            return self.base
        if candidate.steps != self._steps:
            states = [self.of_step(step) for step in candidate.steps]
            mean = [(1 / len(states), state) for state in states]
            self._steps, self._tuned = candidate.steps, mix(mean) if len(states) > 1 else states[0]
        if candidate.share == 1:
            return self._tuned
        return mix([(candidate.share, self._tuned), (1 - candidate.share, self.base)])
