"""The files of a checkpoint beside those of transformers' Trainer; knows no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rqa_ray.evaluation.results import BEFORE, EVALUATION, Evaluation

MODEL_FOLDER = "model"
STEP_FILE = "step.json"


@dataclass(frozen=True)
class StepNote:
    """Where a checkpoint is in its run."""

    step: int  # optimizer steps that were made
    evaluation_pending: bool = False  # an evaluation was due at this step, and a stop has put it off

    def save(self, folder: Path) -> None:
        """Writes the note into a checkpoint."""
        (folder / STEP_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> StepNote:
        """The note of a checkpoint."""
        return cls(**json.loads((folder / STEP_FILE).read_text()))


def save_evaluations(folder: Path, here: Evaluation, before: Evaluation) -> None:
    """Writes into a checkpoint what was found of its own step, nothing where that was not evaluated, and of step 0."""
    for name, content in (here.files(EVALUATION) | before.files(BEFORE)).items():
        (folder / name).write_bytes(content)


def load_evaluation(folder: Path, name: str) -> Evaluation:
    """What `save_evaluations` wrote, by one of its two names."""
    return Evaluation.load(name, lambda file: (folder / file).open("rb"))
