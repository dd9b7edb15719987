"""Declares the settings of the loss that training minimizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rqa_ray.fields import ABOVE_0, LOSS, Check, at_least, from_to


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
    teacher_temperature: float = LOSS.setting(
        1.0, "Divides the teacher's scores: 0.05 for cosine, 1 for hybrid.", ABOVE_0
    )
    dropout: float | None = LOSS.setting(
        None,
        "Dropout probability; 0 is the fastest on a CPU.",
        Check(lambda value: 0 <= value < 1, "from 0 to below 1"),
        unset="the model's own",
    )
