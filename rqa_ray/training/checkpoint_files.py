"""The files of a checkpoint that transformers' Trainer does not write; does not import Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rqa_ray.evaluation.results import BEFORE, EVALUATION, Evaluation

MODEL_FOLDER = "model"
STEP_FILE = "step.json"


@dataclass(frozen=True)
class StepNote:
    """Says at which step of its run a checkpoint was saved."""

    step: int  # finished optimizer steps
    evaluation_pending: bool = False  # whether a stop has put off the evaluation of this step

    def save(self, folder: Path) -> None:
        """Writes the note into a checkpoint."""
        (folder / STEP_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> StepNote:
        """Reads the note of a checkpoint."""
        return cls(**json.loads((folder / STEP_FILE).read_text()))


def save_evaluations(folder: Path, here: Evaluation, before: Evaluation) -> None:
    """Writes two evaluations into a checkpoint: that of its own step, if there is one, and that of step 0."""
    for name, content in (here.files(EVALUATION) | before.files(BEFORE)).items():
        (folder / name).write_bytes(content)


def load_evaluation(folder: Path, name: str) -> Evaluation:
    """Reads what `save_evaluations` wrote, by one of its two names."""
    return Evaluation.load(name, lambda file: (folder / file).open("rb"))
