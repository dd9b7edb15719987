"""Evaluates the pretrained model for a search, and leaves the winner of the search.

All trials start from the pretrained model, so it is evaluated once. The winner is the only trained model that is
evaluated on the test questions. It is finished and written to output_dir as `jobs/train.py` does it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rqa_ray.errors import InputError
from rqa_ray.places import inside, with_suffix, write_json
from rqa_ray.reports.trials import Choices, Space, Trial
from rqa_ray.retriever.encoder_settings import ModelSpec, encoder_settings
from rqa_ray.texts import command
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.checkpoints import StoredCheckpoint
from rqa_ray.training.driver import fit
from rqa_ray.training.finisher import place_of
from rqa_ray.training.job import Job
from rqa_ray.training.loops import evaluate_worker
from rqa_ray.training.result import TrainResult
from rqa_ray.training.run_record import RunRecord
from rqa_ray.training.setup import Setup
from rqa_ray.training.train import Ran, finish
from rqa_ray.tuning.space import combinations, with_values
from rqa_ray.tuning.trial import Shared, encoder_key

BEST_CONFIG_FILE = "best_config.json"


def evaluate_pretrained(setup: Setup, space: Space, root: str) -> dict[str, StoredCheckpoint]:
    """Stores the pretrained model as a checkpoint of step 0, once for each setting that changes its evaluation.

    Raises:
        InputError: the search that is resumed has evaluated the model on other questions or passages.
    """
    changing: Space = {
        name: dimension
        for name, dimension in space.items()
        if name in ("pooling_type", "similarity") and isinstance(dimension, Choices)
    }
    found = {}
    for values in combinations(changing) or [{}]:
        job = with_values(setup.job, values)
        key = encoder_key(job)
        names = stored.list_run_names(root, f"{key}.")
        whole = stored.list_checkpoints(root, names)
        if not whole:
            evaluate(setup, job, root, f"{key}.{len(names)}")
            whole = stored.list_checkpoints(root, [f"{key}.{len(names)}"])
        elif not whole[-1].evaluation().of(setup.fingerprints()):
            raise InputError(
                "--resume: the search began with other eval questions or passages, so its trials cannot be compared; "
                "give the files that it began with, or start a new search"
            )
        found[key] = whole[-1]
    return found


def evaluate(setup: Setup, job: Job, root: str, run: str) -> None:
    """Evaluates the pretrained model on all questions with all workers of a trial."""
    spec = setup.worker_spec(phase="evaluating the pretrained model, texts")
    spec = replace(spec, settings=job.settings, model=model_of(setup, job))
    fit(evaluate_worker, job, setup.workers, spec, root, run, saves_on_stop=False)


def leave_winner(setup: Setup, record: RunRecord, shared: Shared, winner: Trial) -> TrainResult:
    """Finishes the winner, evaluates it on the test questions, and writes it to output_dir with its config."""
    job = replace(shared.trial_job(winner.values), resume_flag=setup.job.resume_flag)
    of_trial = stored.list_checkpoints(shared.root, stored.list_run_names(shared.root, f"{winner.name}."))
    whole = [shared.before[encoder_key(job)], *of_trial]
    folder = Path(job.output_dir)
    write_json(folder / BEST_CONFIG_FILE, job.to_config() | {"output_dir": with_suffix(job.location, "-best")})
    record.files = sorted({*record.files, BEST_CONFIG_FILE})
    again = command("jobs/train.py", inside(job.location, BEST_CONFIG_FILE))
    ran = Ran(whole, place_of(shared.root, f"winner-{winner.name}"), winner.train_metrics)
    return finish(setup, job, record, model_of(setup, job), ran, again)


def model_of(setup: Setup, job: Job) -> ModelSpec:
    """Returns the pretrained model with the settings of one trial."""
    return replace(setup.model, settings=encoder_settings(setup.model.folder, job.settings))
