"""Declares the settings of the loss that training minimizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rqa_ray.errors import InputError
from rqa_ray.fields import ABOVE_0, LOSS, Check, at_least, from_to

OF_COSINES, OF_WIDE_SCORES = 0.05, 1.0  # default of `--teacher_temperature`: for scores from -1 to 1, and for others
LEARNED_TEMPERATURES = 0.01, 100.0  # bounds of a temperature that is learned; CLIP's scale is at most 100 too


@dataclass(kw_only=True)
class LossSettings:
    """The loss that training minimizes."""

    contrastive_loss: Literal["inbatch_contrastive"] = LOSS.setting("inbatch_contrastive", "The loss; there is one.")
    temperature: float = LOSS.setting(0.05, "Divides the scores: about 0.05 for cosine, about 1 for dot.", ABOVE_0)
    hard_neg_ratio: float = LOSS.setting(0.05, "Hard negatives, as a share of the questions of a batch.", at_least(0))
    negatives_per_question: int = LOSS.setting(
        0, "Hard negatives that each question brings into its batch.", at_least(0)
    )
    distill_weight: float = LOSS.setting(
        0.0, "Share of the loss that follows the teacher's scores (0 to 1).", from_to(0, 1)
    )
    teacher_temperature: float | None = LOSS.setting(
        None, "Divides the teacher's scores.", ABOVE_0, unset="0.05 for cosines, else 1"
    )
    dropout: float | None = LOSS.setting(
        None,
        "Dropout probability; 0 is the fastest on a CPU.",
        Check(lambda value: 0 <= value < 1, "from 0 to below 1"),
        unset="the model's own",
    )
    symmetric_loss: bool = LOSS.setting(
        False, "Score each gold passage against all questions of the batch too.", is_rare=True
    )
    learn_temperature: bool = LOSS.setting(
        False, "Train the temperature too, from --temperature on, from 0.01 to 100.", is_rare=True
    )
    matryoshka_dims: list[int] | None = LOSS.setting(
        None, "Train embeddings that can be cut to these dimensions: 384 192 96.", at_least(1), is_rare=True
    )
    matryoshka_weights: list[float] | None = LOSS.setting(
        None, "Weights of the losses of --matryoshka_dims.", ABOVE_0, unset="1 each", is_rare=True
    )

    def check_loss(self) -> None:
        """Raises InputError for values that cannot work together."""
        low, high = LEARNED_TEMPERATURES
        if self.learn_temperature and not low <= self.temperature <= high:
            raise InputError(
                f"--learn_temperature: begins at --temperature {self.temperature:g}, which has to be from {low:g} to "
                f"{high:g}"
            )
        dims, weights = self.matryoshka_dims or [], self.matryoshka_weights
        twice = [number for place, number in enumerate(dims) if number in dims[:place]]
        if twice:
            raise InputError(f"--matryoshka_dims: {twice[0]} is given twice")
        if weights and len(weights) != len(dims):
            raise InputError(
                f"--matryoshka_weights: give one for each of --matryoshka_dims, not {len(weights)} for {len(dims)}"
            )
