"""Finds the files of a run, or writes the built-in data."""

from __future__ import annotations

from pathlib import Path

from rqa_ray.data.demo import write_demo
from rqa_ray.data.records import find_inputs
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import exists, inside, push_folder
from rqa_ray.settings import INPUTS
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import DEMO_FOLDER

DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS = 200, 520, 450


def input_files(job: Job) -> dict[str, list[str]]:
    """Returns files by input name: train, eval, test, corpus."""
    if job.settings.prepared_path:
        paths = {name: inside(job.settings.prepared_path, f"{name}.parquet") for name in INPUTS}
        try:
            has_test = exists(paths["test"])
        except (OSError, ValueError) as error:
            folder = job.settings.prepared_path.partition("?")[0]
            raise InputError(f"--prepared_path {folder}: cannot be opened ({first_line(error)})") from None
        given = {name: ("prepared_path", [path]) for name, path in paths.items() if name != "test" or has_test}
    else:
        given = {name: (flag, getattr(job.settings, flag)) for name, flag in INPUTS.items()}
    outputs = {} if job.resume else {"output_dir": job.location}  # a run that goes on deletes nothing
    return find_inputs(given, job.settings.on_bad_record == "skip", outputs)


def demo_files(job: Job) -> dict[str, list[str]]:
    """Writes the built-in data under output_dir."""
    folder = Path(job.output_dir) / DEMO_FOLDER
    paths = write_demo(folder, job.settings.demo_size or 0, DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS)
    if "://" in job.location:  # because other nodes do not see the local folder
        push_folder(str(folder), inside(job.location, DEMO_FOLDER))
        return {name: [inside(job.location, f"{DEMO_FOLDER}/{paths[flag].name}")] for name, flag in INPUTS.items()}
    return {name: [str(paths[flag])] for name, flag in INPUTS.items()}
