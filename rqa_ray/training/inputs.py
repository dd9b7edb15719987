"""Finds the files of a run, or writes the built-in data; holds out eval questions."""

from __future__ import annotations

from pathlib import Path

from rqa_ray.corpus.mined_files import SUSPECTS_FILE
from rqa_ray.data.demo import write_demo
from rqa_ray.data.held_out import NOTHING, HeldOut
from rqa_ray.data.labels import Labels
from rqa_ray.data.readers import hold_out
from rqa_ray.data.records import check_inputs, find_by_location
from rqa_ray.data.skipped import Skipped
from rqa_ray.data.sources import Sources
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import exists, inside, push_folder, refuse_among_inputs, shown
from rqa_ray.settings import INPUTS
from rqa_ray.training.checkpoints import StoredCheckpoint
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import DEMO_FOLDER

DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS = 200, 520, 450


Files = dict[str, list[str]]  # by input name: train, eval, test, corpus


def input_files(job: Job) -> tuple[Files, Sources]:
    """Returns the files that the user names, and the sources of the training files."""
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
    suspects = inside(job.location, SUSPECTS_FILE)  # a person's decisions in it would be replaced
    refuse_among_inputs("output_dir", suspects, [], job.settings.accepted_labels or [])
    outputs = {} if job.resume else {"output_dir": job.location}  # a run that goes on deletes nothing
    found = find_by_location(given)
    return check_inputs(given, found, job.settings.on_bad_record == "skip", outputs), Sources.of(found["train"])


def demo_files(job: Job) -> Files:
    """Writes the built-in data under output_dir."""
    folder = Path(job.output_dir) / DEMO_FOLDER
    paths = write_demo(folder, job.settings.demo_size or 0, DEMO_EVAL_SIZE, DEMO_TEST_SIZE, DEMO_MAX_CHARS)
    if "://" in job.location:  # because other nodes do not see the local folder
        push_folder(str(folder), inside(job.location, DEMO_FOLDER))
        return {name: [inside(job.location, f"{DEMO_FOLDER}/{paths[flag].name}")] for name, flag in INPUTS.items()}
    return {name: [str(paths[flag])] for name, flag in INPUTS.items()}


def held_out_of(
    job: Job, train_files: list[str], labels: Labels, resumed: StoredCheckpoint | None
) -> tuple[HeldOut, Skipped]:
    """Holds out the eval questions that `--eval_share` asks for; see `readers.hold_out`.

    `resumed` is the checkpoint from which the run goes on.

    Raises:
        InputError: no questions can be held out, or the checkpoint was trained on some of them.
    """
    share, seed = job.settings.eval_share, job.training["seed"]
    if share is None:
        return NOTHING, Skipped()
    held_out, skipped = hold_out(train_files, share, seed, job.settings.on_bad_record == "skip", labels)
    if resumed and resumed.note.held_out != held_out.digest:
        other = "other questions held out" if resumed.note.held_out else "no questions held out"
        raise InputError(
            f"--eval_share {share:g}, --seed {seed}: the checkpoint in {shown(resumed.location)} was trained with "
            f"{other}, so it has met some of these eval questions; give the --eval_share, --seed and training files "
            "of its run, or start a new run"
        )
    return held_out, skipped
