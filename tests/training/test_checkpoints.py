"""A stored checkpoint is complete or absent; its evaluation, in the loop or beside training, is read with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray.train
from pyarrow import fs

from rqa_ray.errors import InputError
from rqa_ray.evaluation.results import Evaluation, SplitResult
from rqa_ray.training.checkpoint_files import StepNote, save_evaluations
from rqa_ray.training.checkpoints import (
    best_checkpoints,
    list_checkpoints,
    list_evaluations,
    local_checkpoint,
    newest_intact,
    read_checkpoint,
    read_evaluation_from,
    write_evaluation,
    write_evaluation_to,
    write_manifest,
)

METRIC = "eval_loss"


def found(value: float) -> Evaluation:
    return Evaluation({"eval": SplitResult({"loss": value}, np.ones((2, 3), np.float32), np.zeros((2, 3), int))})


def write(storage: Path, step: int, here: Evaluation) -> Path:
    folder = storage / "run" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_evaluations(folder, here, found(0.9))
    StepNote(step).save(folder)
    write_manifest(folder, step)
    return folder


def test_a_checkpoint_has_its_step_its_metrics_and_those_of_the_model_before(tmp_path) -> None:
    checkpoint = read_checkpoint(str(write(tmp_path, 4, found(0.5))))
    assert checkpoint.step == 4 and checkpoint.metrics == {METRIC: 0.5}
    assert checkpoint.evaluation().metrics == {METRIC: 0.5} and checkpoint.before().metrics == {METRIC: 0.9}
    assert checkpoint.evaluation().splits["eval"].positions.shape == (2, 3)


def test_an_evaluation_beside_training_takes_the_place_of_none(tmp_path) -> None:
    folder = write(tmp_path, 4, Evaluation())
    assert read_checkpoint(str(folder)).metrics == {}
    write_evaluation(ray.train.Checkpoint(str(folder)), 4, found(0.25))
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.metrics == checkpoint.evaluation().metrics == {METRIC: 0.25}
    assert list_evaluations(str(tmp_path), ["run"]) == [(4, {METRIC: 0.25})]


def test_a_kill_while_an_evaluation_is_replaced_leaves_none(tmp_path, monkeypatch) -> None:
    place, disk = f"{tmp_path}/candidate", fs.LocalFileSystem()
    write_evaluation_to(place, disk, found(0.5))
    assert read_evaluation_from(place, disk).metrics == {METRIC: 0.5}
    monkeypatch.setattr(Evaluation, "files", lambda self, name: {f"{name}.npz": b"cut"})  # killed in the first file
    write_evaluation_to(place, disk, found(0.25))
    assert read_evaluation_from(place, disk) is None
    monkeypatch.undo()
    write_evaluation_to(place, disk, found(0.25))
    assert read_evaluation_from(place, disk).metrics == {METRIC: 0.25}


def test_a_checkpoint_that_was_cut_short_is_not_there(tmp_path) -> None:
    write(tmp_path, 4, found(0.5))
    cut = write(tmp_path, 8, found(0.1))
    (cut / "before.npz").write_bytes(b"cut")
    assert read_checkpoint(str(cut)) is None
    assert [checkpoint.step for checkpoint in list_checkpoints(str(tmp_path), ["run", "no such run"])] == [4]


def test_the_best_is_the_earliest_of_equals_and_never_one_that_was_not_evaluated(tmp_path) -> None:
    for step, here in ((2, found(0.5)), (4, found(0.25)), (6, found(0.25)), (8, Evaluation())):
        write(tmp_path, step, here)
    best = best_checkpoints(list_checkpoints(str(tmp_path), ["run"]), METRIC, 2)
    assert [checkpoint.step for checkpoint in best] == [4, 6]


def test_a_step_that_is_stored_twice_is_one_of_the_best_once(tmp_path) -> None:
    for step, here in ((2, found(0.5)), (4, found(0.25))):
        write(tmp_path, step, here)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    best = best_checkpoints(list_checkpoints(str(tmp_path), ["run", "again"]), METRIC, 2)
    assert [checkpoint.step for checkpoint in best] == [4, 2]


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path) -> None:
    folder = write(tmp_path, 4, found(0.5))
    (folder / "step.json").unlink()
    (folder / "manifest.json").unlink()
    (folder / "evaluation.json").write_text(json.dumps({"step": 4, "metrics": {METRIC: 0.5}, "before": {}}))
    write_manifest(folder, 4)
    with pytest.raises(InputError, match="checkpoint-4: a checkpoint of an earlier version of rqa_ray"):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: b""])
def test_a_run_does_not_go_on_from_a_checkpoint_that_was_damaged(tmp_path, monkeypatch, capsys, damage) -> None:
    for step in (2, 4):
        write(tmp_path, step, found(0.5))
    whole = list_checkpoints(str(tmp_path), ["run"])
    file = tmp_path / "run/checkpoint-4/before.npz"
    file.write_bytes(damage(file.read_bytes()))
    assert newest_intact(whole).step == 2
    said = capsys.readouterr().out
    assert "checkpoint-4 is not used, because its file before.npz was damaged" in said
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint(whole[1].path))
    notes: list[str] = []
    with local_checkpoint(None, tell=notes.append) as folder:
        assert folder == whole[0].path and notes == said.splitlines()
    with pytest.raises(InputError, match="before.npz was damaged; delete this checkpoint"):
        whole[1].download("before.npz", tmp_path / "copy.npz")
    assert not (tmp_path / "copy.npz").exists()
