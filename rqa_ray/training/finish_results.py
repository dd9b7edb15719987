"""Keeps what the candidates of a finish have scored, so that a finish that was killed scores no candidate twice."""

from __future__ import annotations

from pathlib import Path

from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import open_location
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import read_weights
from rqa_ray.training.candidate import BASE, Candidate, StateDict, Weights
from rqa_ray.training.checkpoint_files import MODEL_FOLDER
from rqa_ray.training.checkpoints import StoredCheckpoint, read_checkpoint, read_evaluation_from, write_evaluation_to
from rqa_ray.training.spec import FinishSpec


class FinishResults:
    """The candidates' evaluations: those that training made, and those that the finish has stored."""

    def __init__(self, told: FinishSpec) -> None:
        self.filesystem, self.path = open_location(told.place)
        self.checkpoints = {step: _read(location) for step, location in told.checkpoints.items()}
        self.before, self.asked = told.before, told.asked

    def get(self, candidate: Candidate) -> Evaluation | None:
        """Returns the evaluation of a candidate; None if there is none yet, or only one of other questions."""
        stored = read_evaluation_from(f"{self.path}/{candidate.key}", self.filesystem)
        found = stored and stored.of(self.asked)
        if found is None and candidate == BASE:
            return self.before.of(self.asked)
        if found is None and candidate == Candidate((candidate.step,)):
            return self.checkpoints[candidate.step].evaluation().of(self.asked)
        return found

    def temperature(self, candidate: Candidate, start: float) -> float:
        """Returns the temperature of the loss at the candidate's last step; training started at `start`."""
        learned = self.checkpoints[candidate.step].note.temperature if candidate.step else None
        return learned or start

    def __setitem__(self, candidate: Candidate, found: Evaluation) -> None:
        """Stores the evaluation of a candidate."""
        write_evaluation_to(f"{self.path}/{candidate.key}", self.filesystem, found)

    def weights(self, base: StateDict, encoder: Encoder, scratch: Path, trust_remote_code: bool) -> Weights:
        """Returns the weights of all candidates; copies the models of checkpoints into `scratch`.

        `encoder` is an encoder of the same kind, which is not changed.
        """

        def of_step(step: int) -> StateDict:
            folder = scratch / f"step-{step}"
            if not folder.exists():
                self.checkpoints[step].download(MODEL_FOLDER, folder)
            return read_weights(encoder, str(folder), trust_remote_code)

        return Weights(base, of_step)


def _read(location: str) -> StoredCheckpoint:
    checkpoint = read_checkpoint(location)
    if checkpoint is None:
        raise FileNotFoundError(f"{location}: the checkpoint was deleted")
    return checkpoint
