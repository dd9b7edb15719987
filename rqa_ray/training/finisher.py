"""Chooses the model that a run or a search leaves, and writes it; asks the workers only for evaluations that lack."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from rqa_ray.cluster.probe import wait_for_storage
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside, shown
from rqa_ray.retriever.adapters import mix_adapters
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.retriever.folder import load_encoder, save_encoder, save_prompts
from rqa_ray.scratch import scratch_folder
from rqa_ray.training.candidate import BASE, Candidate
from rqa_ray.training.checkpoint_files import ADAPTER_FOLDER, MODEL_FOLDER
from rqa_ray.training.checkpoints import (
    StoredCheckpoint,
    best_checkpoints,
    evaluation_folder,
    write_evaluation_to,
)
from rqa_ray.training.driver import fit, how_to_go_on
from rqa_ray.training.finish import Choice, EvalQuestions, Finish, most_steps
from rqa_ray.training.finish_results import FinishResults
from rqa_ray.training.job import Job
from rqa_ray.training.loops import finish_worker
from rqa_ray.training.setup import Setup
from rqa_ray.training.spec import FinishSpec
from rqa_ray.training.uploads import StorageAway

MOST_TRIES = 3  # how often the workers are asked for the same evaluations, if storage was away

T = TypeVar("T")


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

    @cached_property
    def finish(self) -> Finish:
        """The candidates, and how one of them is chosen."""
        metric = self.job.training["metric_for_best_model"]
        return Finish(self.job.settings.finish, metric, self.questions)

    @cached_property
    def told(self) -> FinishSpec:
        """The best checkpoints, as far as they are evaluated when this is first asked for."""
        tuned = [checkpoint for checkpoint in self.whole if checkpoint.step > 0]
        number = most_steps(self.finish.kind, self.job.training.get("save_total_limit"))
        return self._told(best_checkpoints(tuned, self.finish.metric, number))

    @cached_property
    def results(self) -> FinishResults:
        """What the candidates of `told` have scored."""
        return FinishResults(self.told)

    def _told(self, checkpoints: list[StoredCheckpoint]) -> FinishSpec:
        locations = {one.step: one.location for one in checkpoints}
        return FinishSpec(self.place, locations, self.whole[-1].before(), self.questions.clusters, self.asked)

    def make_up_evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """Lets the workers make the evaluations beside training that were cut off, and stores them as that task would.

        A crash of the driver ends the evaluations that wait or run. Without them, `choose` would not know how good
        the checkpoints of these steps are. Returns their steps and metrics.
        """
        done = {checkpoint.step for checkpoint in self.whole if checkpoint.metrics}
        cut_off = [one for one in self.whole if one.step not in done and one.note.evaluated_beside]
        told = self._told(cut_off)
        results = FinishResults(told)

        def made_up() -> list[Evaluation] | None:
            found = [results.get(Candidate((checkpoint.step,))) for checkpoint in cut_off]
            lacking = [str(one.step) for one, of_one in zip(cut_off, found, strict=True) if of_one is None]
            if lacking:
                print(f"evaluating step {', '.join(lacking)}, whose evaluation was cut off")
            return None if lacking else [of_one for of_one in found if of_one]

        for checkpoint, found in zip(cut_off, self._scored(made_up, told, "none"), strict=True):
            folder = evaluation_folder(checkpoint.path, checkpoint.step)
            write_evaluation_to(folder, checkpoint.filesystem, found)
            checkpoint.metrics = found.metrics_of("eval")
        return [(checkpoint.step, checkpoint.metrics) for checkpoint in cut_off]

    def choose(self) -> Choice:
        """Returns the choice, after the workers have made the evaluations that it needs.

        Raises:
            Stopped: a signal came; what was scored is kept.
        """

        def choice() -> Choice | None:
            try:
                found = self.finish.choose(self.told.checkpoints, self._score)
                ranked = [found.evaluation.splits, self.before().splits]
            except _NotScored:
                return None
            lacks_test = "test" in self.setup.blocks and not all("test" in splits for splits in ranked)
            return None if lacks_test else found

        return self._scored(choice, self.told, self.finish.kind)

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

    def _scored(self, read: Callable[[], T | None], told: FinishSpec, kind: Literal["best", "merge", "none"]) -> T:
        """Returns what `read` finds in the results; lets the workers score what lacks until nothing does.

        Raises:
            SystemExit: the workers were asked MOST_TRIES times, and something lacks still; the code is 1.
        """
        for _ in range(MOST_TRIES):
            found = read()
            if found is not None:
                return found
            self._score_on_workers(told, kind)
        found = read()
        if found is None:
            lacking = f"some candidates have no evaluation in {shown(self.place)} after {MOST_TRIES} tries"
            print(f"error: {lacking}\n{how_to_go_on(self.job)}", file=sys.stderr)
            raise SystemExit(1)
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
        with scratch_folder() as scratch:
            weights = self.results.weights(encoder.state_dict(), encoder, Path(scratch), trust)
            encoder.load_state_dict(weights.of(candidate))
        save_encoder(encoder, str(folder))

    def write_adapter(self, candidate: Candidate, folder: Path) -> str:
        """Writes the adapter that makes a candidate's model from the pretrained one; returns a line about it."""
        if candidate == BASE:
            return "no adapter is saved, because the pretrained weights are kept"
        with scratch_folder() as scratch:
            of_steps = [Path(scratch, str(step)) for step in candidate.steps]
            for step, of_step in zip(candidate.steps, of_steps, strict=True):
                self.results.checkpoints[step].download(ADAPTER_FOLDER, of_step)
            mix_adapters(of_steps, candidate.share, folder)
        return f"adapter in {ADAPTER_FOLDER}/ of the output folder"


def place_of(storage_path: str, run: str) -> str:
    """Returns where the finish of a run stores its results: with the run, so that they are deleted with it."""
    return inside(inside(storage_path, run), "finish")
