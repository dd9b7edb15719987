"""Chooses the model that a run or a search leaves, and writes it; asks the workers only for evaluations that lack."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rqa_ray.cluster.probe import wait_for_storage
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside
from rqa_ray.retriever.adapters import mix_adapters
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.retriever.folder import load_encoder, save_encoder, save_prompts
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.checkpoint_files import ADAPTER_FOLDER, MODEL_FOLDER
from rqa_ray.training.checkpoints import (
    StoredCheckpoint,
    best_checkpoints,
    evaluation_folder,
    write_evaluation_to,
)
from rqa_ray.training.driver import fit
from rqa_ray.training.finish import Choice, EvalQuestions, Finish, most_steps
from rqa_ray.training.finish_results import FinishResults
from rqa_ray.training.job import Job
from rqa_ray.training.loops import finish_worker
from rqa_ray.training.setup import Setup
from rqa_ray.training.spec import FinishSpec
from rqa_ray.training.uploads import StorageAway


class _NotScored(LookupError):
    """A candidate has no evaluation yet."""


@dataclass
class Finisher:
    """Chooses among the checkpoints `whole` of a run; `place` is the folder or URI of what the candidates score."""

    setup: Setup
    job: Job
    model: ModelSpec  # the pretrained model
    whole: list[StoredCheckpoint]
    place: str
    questions: EvalQuestions
    asked: dict[str, str]  # `rows.fingerprint` of eval, and of test if there is one

    def __post_init__(self) -> None:
        metric = self.job.training["metric_for_best_model"]
        self.made_up = self._make_up_evaluations()
        tuned = [checkpoint for checkpoint in self.whole if checkpoint.step > 0]
        number = most_steps(self.job.settings.finish, self.job.training.get("save_total_limit"))
        self.told = self._told(best_checkpoints(tuned, metric, number))
        self.results = FinishResults(self.told)
        self.finish = Finish(self.job.settings.finish, metric, self.questions)

    def _told(self, checkpoints: list[StoredCheckpoint]) -> FinishSpec:
        locations = {one.step: one.location for one in checkpoints}
        return FinishSpec(self.place, locations, self.whole[-1].before(), self.questions.clusters, self.asked)

    def _make_up_evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """Lets the workers make the evaluations beside training that were cut off, and stores them as that task would.

        A crash of the driver ends the evaluations that wait or run. Without them, the finish would not know how good
        the checkpoints of these steps are. Returns their steps and metrics.
        """
        done = {checkpoint.step for checkpoint in self.whole if checkpoint.metrics}
        cut_off = [one for one in self.whole if one.step not in done and one.note.evaluated_beside]
        told = self._told(cut_off)
        while lacking := [one for one in cut_off if FinishResults(told).get(Candidate((one.step,))) is None]:
            print(f"evaluating step {', '.join(str(one.step) for one in lacking)}, whose evaluation was cut off")
            self._score_on_workers(told, "none")
        for checkpoint in cut_off:
            found = FinishResults(told).get(Candidate((checkpoint.step,)))
            assert found is not None
            folder = evaluation_folder(checkpoint.path, checkpoint.step)
            write_evaluation_to(folder, checkpoint.filesystem, found)
            checkpoint.metrics = found.metrics_of("eval")
        return [(checkpoint.step, checkpoint.metrics) for checkpoint in cut_off]

    def choose(self) -> Choice:
        """Returns the choice, after the workers have made the evaluations that it needs.

        Raises:
            Stopped: a signal came; what was scored is kept.
        """
        while True:
            try:
                choice = self.finish.choose(self.told.checkpoints, self._score)
                ranked = [choice.evaluation.splits, self.before().splits]
                if "test" not in self.setup.blocks or all("test" in splits for splits in ranked):
                    return choice
            except _NotScored:
                pass
            self._score_on_workers(self.told, self.job.settings.finish)

    def before(self) -> Evaluation:
        """Returns the evaluation of the pretrained model."""
        return self._score(BASE)

    def learned_temperature(self, candidate: Candidate) -> float | None:
        """Returns the temperature that the loss had learned at the candidate's last step; None if it learns none."""
        settings = self.job.settings
        return self.results.temperature(candidate, settings.temperature) if settings.learn_temperature else None

    def _score(self, candidate: Candidate) -> Evaluation:
        found = self.results.get(candidate)
        if found is None:
            raise _NotScored(str(candidate))
        return found

    def _score_on_workers(self, told: FinishSpec, kind: Literal["best", "merge", "none"]) -> None:
        job, phase = self.job, "scoring candidates for the model to leave"
        spec = self.setup.worker_spec(finish=told, phase=phase)
        settings = replace(job.settings, finish=kind)
        spec = replace(spec, settings=settings, training=job.training, model=self.model)
        try:
            # Each try is a new Ray run, because Ray resumes a run whose name it knows.
            run = f"run-{secrets.token_hex(3)}"
            fit(finish_worker, job, self.setup.workers, spec, self.place, run, saves_on_stop=False)
        except StorageAway as error:
            print(f"warning: {error}; waiting until it answers")
            wait_for_storage(self.place)

    def write_model(self, candidate: Candidate, folder: Path) -> None:
        """Writes a candidate's model, with the prompts that training has used, in this process on the CPU."""
        if candidate.share == 1 and len(candidate.steps) == 1:
            self.results.checkpoints[candidate.step].download(MODEL_FOLDER, folder)
        else:
            self._write_mixture(candidate, folder)
        save_prompts(folder, dict(self.model.prompts))

    def _write_mixture(self, candidate: Candidate, folder: Path) -> None:
        trust = self.model.trust_remote_code
        encoder = load_encoder(self.model.folder, self.model.settings, trust_remote_code=trust)
        with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
            weights = self.results.weights(encoder.state_dict(), encoder, Path(scratch), trust)
            encoder.load_state_dict(weights.of(candidate))
        save_encoder(encoder, str(folder))

    def write_adapter(self, candidate: Candidate, folder: Path) -> str:
        """Writes the adapter that makes a candidate's model from the pretrained one; returns a line about it."""
        if candidate == BASE:
            return "no adapter is saved, because the pretrained weights are kept"
        with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
            of_steps = [Path(scratch, str(step)) for step in candidate.steps]
            for step, of_step in zip(candidate.steps, of_steps, strict=True):
                self.results.checkpoints[step].download(ADAPTER_FOLDER, of_step)
            mix_adapters(of_steps, candidate.share, folder)
        return f"adapter in {ADAPTER_FOLDER}/ of the output folder"


def place_of(storage_path: str, run: str) -> str:
    """Returns where the finish of a run stores its results: with the run, so that they are deleted with it."""
    return inside(inside(storage_path, run), "finish")
