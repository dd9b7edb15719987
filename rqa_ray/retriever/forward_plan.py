"""Says how the texts of a batch go through the model: a plan that is made once, stored, and used again on resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN_FILE = "forward_plan.json"  # in a checkpoint, so that a resumed run gives the same bits


def cached_share(gradient_cache: str) -> float | None:
    """Returns what the setting says: the share of the tokens whose gradients are cached (0 to 1), None for auto."""
    words = {"auto": None, "true": 1.0, "false": 0.0}
    return words[gradient_cache] if gradient_cache in words else float(gradient_cache)


@dataclass(frozen=True)
class ForwardPlan:
    """The settings of a forward pass: measured before training, unless the user sets them."""

    max_tokens: int  # largest number of tokens in a token batch
    packed: bool = False  # whether texts are packed one after the other, without padding
    gradient_cache: float = 0.0  # share of the tokens whose gradients are cached, because their graph does not fit
    world_size: int = 1  # number of ranks that the plan was made for; other shares of the batch need other memory

    def describe(self) -> str:
        """Returns one line about the plan for the start of a run."""
        padding = "no padding" if self.packed else "padded to their longest text"
        caching = "with" if self.gradient_cache else "without"
        of_some = f" of {self.gradient_cache:.0%} of the tokens" if 0 < self.gradient_cache < 1 else ""
        return f"at most {self.max_tokens:,} tokens a forward pass, {padding}; {caching} gradient caching{of_some}"

    def save(self, folder: Path) -> None:
        """Writes the plan into a checkpoint."""
        (folder / PLAN_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> ForwardPlan:
        """Reads the plan of a checkpoint."""
        return cls(**json.loads((folder / PLAN_FILE).read_text()))
