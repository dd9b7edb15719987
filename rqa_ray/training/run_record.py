"""Remembers the runs of an output_dir: whether the folder may be used, and where its last run can be resumed.

Each run has its own Ray run name, because Ray resumes a run with a known name without saying so. `run.json` keeps the
names.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rqa_ray.cluster.probe import within_seconds
from rqa_ray.credentials import is_masked, masked_values, unmasked
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import (
    ALL_ARGS_FILE,
    absolute,
    check_writable,
    inside,
    read_json,
    refuse_among_inputs,
    shown,
    within,
    write_json,
)
from rqa_ray.retriever.losses import make_loss
from rqa_ray.training import checkpoints as stored
from rqa_ray.training.job import Job
from rqa_ray.training.output_folder import (
    CHECKPOINTS_FOLDER,
    DEMO_FOLDER,
    RUN_FILE,
    delete_files,
    delete_remote,
    push,
    storage_of,
)
from rqa_ray.training.spec import TENSORBOARD_FOLDER
from rqa_ray.training.summary import BAD_RECORDS_FILE

PLACES = ("storage_path", "resume_from", "began_from")  # those that a record names
RECORDED: dict[str, Any] = {  # types of what `RUN_FILE` keeps, beside the location
    "storage_path": str,
    "run_names": list,
    "resume_from": (str, type(None)),
    "began_from": (str, type(None)),
    "files": list,
}


@dataclass
class RunRecord:
    """What output_dir keeps about its Ray runs, so that the same command can resume them.

    The file names places in output_dir relative to output_dir. So a folder that was copied or moved knows its own
    checkpoints, and no others. A storage outside belongs to the run only while the folder is at `location`. The file
    has no credentials: those of the command that reads the file open the storage.
    """

    location: str  # absolute location of output_dir
    storage_path: str
    run_names: list[str]
    resume_from: str | None = None  # the checkpoint from which the newest run starts
    began_from: str | None = None  # the checkpoint of another run from which the first run started
    files: list[str] = field(default_factory=list)  # files of the finished run, relative to output_dir
    copy_of: str | None = None  # if output_dir is a copy: the folder to which the storage belongs

    @classmethod
    def read(cls, job: Job) -> RunRecord | None:
        """Reads the record in output_dir; returns None if there is none.

        Raises:
            InputError: the file is no record that this version can read, or the command lacks the credentials.
        """
        kept = read_json(Path(job.output_dir) / RUN_FILE)
        if kept is None:
            return None
        here, home = absolute(job.location), kept.pop("location", "another folder")
        kept.setdefault("began_from", kept.get("resume_from"))  # which earlier versions did not tell apart
        wrong = _unreadable(kept)
        if wrong:
            raise InputError(
                f"--output_dir {shown(job.location)}: this version cannot read {', '.join(wrong)} of its {RUN_FILE}; "
                "choose another folder, or delete this one"
            )
        for name in PLACES:
            if kept.get(name) and kept[name] != absolute(kept[name]):
                kept[name] = inside(here, kept[name])
            kept[name] = kept.get(name) and unmasked(kept[name], (storage_of(job), here, absolute(job.resume or "")))
        if is_masked(kept["storage_path"]):
            raise InputError(
                f"--output_dir {shown(job.location)}: its checkpoints are in {shown(kept['storage_path'])}, and "
                "credentials are not stored; give --storage_path with them"
            )
        is_own = home == shown(here) or within(kept["storage_path"], here) is not None
        return cls(here, **kept, copy_of=None if is_own else home)

    def save(self, output_dir: str) -> None:
        kept = {name: value for name, value in vars(self).items() if name != "copy_of"}
        kept["location"] = shown(self.location)
        for name in PLACES:
            kept[name] = kept[name] and (within(kept[name], self.location) or kept[name])
        write_json(Path(output_dir) / RUN_FILE, kept)

    def checkpoints(self) -> list[stored.StoredCheckpoint]:
        """Returns the complete checkpoints of all runs by step, and before them the one from which they began."""
        own = stored.list_checkpoints(self.storage_path, self.run_names)
        if not self.began_from or any(checkpoint.location == self.began_from for checkpoint in own):
            return own
        if is_masked(self.began_from):
            print(f"note: {self.began_from}, where the run began, is no candidate: its credentials are not stored")
            return own
        outside = stored.read_checkpoint(self.began_from)
        return [outside, *own] if outside else own

    def refuse_storage_of_others(self, job: Job) -> None:
        """Raises InputError if output_dir is a copy, and the checkpoints belong to the original."""
        if self.copy_of:
            raise InputError(
                f"--output_dir {shown(job.location)}: is a copy of {self.copy_of}, to which the checkpoints in "
                f"{shown(self.storage_path)} belong; resume the run there, or start from one of its checkpoints "
                "(jobs/train.py --resume_from_checkpoint PATH)"
            )


def _unreadable(kept: dict[str, Any]) -> list[str]:
    """Returns the names in a record that are unknown, or that are missing or of another type."""
    unknown = sorted(kept.keys() - RECORDED.keys())
    given = {"files": [], "resume_from": None} | kept
    return unknown or [name for name, kind in RECORDED.items() if not isinstance(given.get(name), kind)]


def check_output_dir(job: Job, model_folder: str) -> stored.StoredCheckpoint | None:
    """Refuses a folder in use, unless the user has said what to do with it; returns the checkpoint to resume from.

    Also refuses a checkpoint of another model, of another adapter, or of a loss with other parameters.
    """
    folder = Path(job.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {job.location}: is a file")
    check_writable(job.output_dir)
    RunRecord.read(job)  # a record that cannot be read is found here, before anything starts
    try:
        checkpoint = within_seconds(lambda: checkpoint_to_resume(job), f"{job.resume_flag}: storage")
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:  # storage does not answer
        raise InputError(f"{job.resume_flag}: its checkpoints cannot be read ({first_line(error)})") from None
    if job.resume and job.resume != "true" and checkpoint is None:
        raise InputError(f"--resume_from_checkpoint {job.resume}: there is no complete checkpoint of this program")
    differs = checkpoint.differs_from(model_folder) if checkpoint else ""
    if checkpoint and differs:
        raise InputError(
            f"{job.resume_flag}: the checkpoint in {shown(checkpoint.location)} belongs to another model than "
            f"--model_name_or_path {job.settings.model_name_or_path} ({differs}); pass the model of that run"
        )
    own, asked = checkpoint and checkpoint.lora().describe_lora(), job.settings.describe_lora()
    if checkpoint and own != asked:
        raise InputError(
            f"{job.resume_flag}: the checkpoint in {shown(checkpoint.location)} was trained with {own}, and this "
            f"command asks for {asked}; pass the --lora_r and --lora_alpha of that run"
        )
    if checkpoint and checkpoint.note.of_loss != list(make_loss(job.settings, "cosine").state_dict()):
        raise InputError(
            f"{job.resume_flag}: the loss of the checkpoint in {shown(checkpoint.location)} has other parameters; "
            "give --learn_temperature and --matryoshka_dims as that run had them"
        )
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    in_use = found - {DEMO_FOLDER}  # the demo data is written before the data is checked
    if not job.resume:
        refuse_among_inputs("output_dir", job.location, [], [model_folder])
    if in_use and not (job.resume or job.settings.overwrite_output_dir):
        raise InputError(
            f"--output_dir {shown(job.location)}: is not empty; choose another folder, resume its run with "
            f"{job.resume_flag}, or delete it with --overwrite_output_dir"
        )
    return checkpoint


def checkpoint_to_resume(job: Job, checks_content: bool = False) -> stored.StoredCheckpoint | None:
    """Returns the checkpoint that was named, or the newest complete one of the run in output_dir.

    None if there is none. `checks_content` reads the files too, and passes over a checkpoint that was damaged.

    Raises:
        InputError: output_dir is a copy, and the checkpoints belong to the original; or the checkpoint that was named
            was damaged.
    """
    if job.resume and job.resume != "true":
        named = stored.read_checkpoint(absolute(job.resume))
        damaged = named and checks_content and stored.damaged_file(named.filesystem, named.path)
        if damaged:
            raise InputError(f"{job.resume_flag}: the file {damaged} of this checkpoint was damaged; name another one")
        return named
    record = RunRecord.read(job) if job.resume else None
    if record is None:
        return None
    record.refuse_storage_of_others(job)
    whole = stored.list_checkpoints(record.storage_path, record.run_names)
    newest = stored.newest_intact(whole) if checks_content else whole[-1] if whole else None
    if newest or not record.resume_from:
        return newest
    if is_masked(record.resume_from):
        where = f"it began from the checkpoint {record.resume_from}, whose credentials are not stored"
        raise InputError(f"{job.resume_flag}: {where}; give --resume_from_checkpoint with this URI")
    return stored.read_checkpoint(record.resume_from)


def open_run(job: Job) -> RunRecord:
    """Prepares output_dir for a new Ray run; a run that resumes starts from the newest complete checkpoint."""
    folder = Path(job.output_dir)
    previous = RunRecord.read(job)
    name = new_run_name(folder)
    record = RunRecord(absolute(job.location), storage_of(job), [name])
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_to_resume(job, checks_content=True)
    if job.resume == "true" and previous:
        record = replace(previous, run_names=[*previous.run_names, name], resume_from=None, copy_of=None)
        changed = changed_settings(read_json(folder / ALL_ARGS_FILE) or {}, job.to_config())
        if changed:
            print(f"warning: the run goes on with other settings than it began with: {changed}")
    elif previous and not job.resume:
        delete_run(job, previous)
    if checkpoint:
        record.resume_from = checkpoint.location
        record.began_from = record.began_from if job.resume == "true" else checkpoint.location
        print(f"resuming from step {checkpoint.step} in {shown(record.resume_from)}")
    elif job.resume:
        print("note: no checkpoint to resume from; starting anew")
    record.save(job.output_dir)
    write_json(folder / ALL_ARGS_FILE, job.to_config())
    push(job)
    return record


def new_run_name(folder: Path) -> str:
    """Returns a name that no other run has, in ASCII as Ray requires, whatever the folder is called."""
    plain = unicodedata.normalize("NFKD", folder.name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^\w.-]+", "-", plain).strip("-.") or "run"
    return f"{name[:100]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def delete_run(job: Job, record: RunRecord) -> None:
    """Deletes what an earlier run left in its folder and its storage, and nothing else."""
    if record.copy_of:
        print(f"note: checkpoints in {shown(record.storage_path)} are left: they belong to {record.copy_of}")
    else:
        stored.delete_runs(record.storage_path, record.run_names)
    folders = [TENSORBOARD_FOLDER, CHECKPOINTS_FOLDER]
    if not job.settings.demo_size:  # the demo data has just been written anew
        folders.append(DEMO_FOLDER)
    for name in folders:
        shutil.rmtree(Path(job.output_dir) / name, ignore_errors=True)
    delete_remote(job, folders)
    delete_files(job, [*record.files, BAD_RECORDS_FILE])


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns the settings that have changed since the run began, with both values, without credentials."""
    before, now = masked_values(before), masked_values(now)
    names = sorted((before.keys() | now.keys()) - {"output_dir"})  # output_dir may have been moved
    names = [name for name in names if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
