"""Says how the texts of a batch go through the model: a plan that is made once, stored, and used again on resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN_FILE = "forward_plan.json"  # in a checkpoint, so that a resumed run gives the same bits


@dataclass(frozen=True)
class ForwardPlan:
    """The settings of a forward pass: measured before training, unless the user sets them."""

    max_tokens: int  # largest number of tokens in a token batch
    packed: bool = False  # whether texts are packed one after the other, without padding
    gradient_cache: bool = False  # whether gradients are cached, because the graph of a batch does not fit in memory
    world_size: int = 1  # number of ranks that the plan was made for; other shares of the batch need other memory

    def describe(self) -> str:
        """Returns one line about the plan for the start of a run."""
        padding = "no padding" if self.packed else "padded to their longest text"
        caching = "with" if self.gradient_cache else "without"
        return f"at most {self.max_tokens:,} tokens a forward pass, {padding}; {caching} gradient caching"

    def save(self, folder: Path) -> None:
        """Writes the plan into a checkpoint."""
        (folder / PLAN_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> ForwardPlan:
        """Reads the plan of a checkpoint."""
        return cls(**json.loads((folder / PLAN_FILE).read_text()))
