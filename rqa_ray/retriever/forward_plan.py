"""How the texts of a batch go through the model: a plan that is made once, and used again on resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN_FILE = "forward_plan.json"  # in a checkpoint: the same plan gives the same bits


@dataclass(frozen=True)
class ForwardPlan:
    """What is chosen by measuring, where the user leaves it open."""

    max_tokens: int  # of a token batch
    packed: bool = False  # whether its texts lie one after the other, without padding
    gradient_cache: bool = False  # whether the graph of a whole batch would not fit in memory
    world_size: int = 1  # for which it was made: other shares of the batch need other memory

    def describe(self) -> str:
        """One line for the start of a run."""
        padding = "no padding" if self.packed else "padded to their longest text"
        caching = "with" if self.gradient_cache else "without"
        return f"at most {self.max_tokens:,} tokens a forward pass, {padding}; {caching} gradient caching"

    def save(self, folder: Path) -> None:
        """Writes the plan into a checkpoint."""
        (folder / PLAN_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> ForwardPlan:
        """The plan of a checkpoint."""
        return cls(**json.loads((folder / PLAN_FILE).read_text()))
