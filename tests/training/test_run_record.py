"""A run knows its own folder wherever that is, and its storage elsewhere only while the folder stays in place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.training.checkpoint_files import StepNote, save_evaluations
from rqa_ray.training.checkpoints import write_manifest
from rqa_ray.training.job import Job, parse_job
from rqa_ray.training.output_folder import with_local_output
from rqa_ray.training.run_record import RunRecord, check_output_dir, new_run_name, open_run

CONFIG = {"model_type": "bert", "hidden_size": 32, "pad_token_id": 0}


def job(folder: Path, *words: str) -> Job:
    return with_local_output(
        parse_job(["--model_name_or_path", "m", "--demo_size", "9", "--output_dir", str(folder), *words])
    )


def store(record: RunRecord, step: int, config: dict | None = None, of_loss: tuple[str, ...] = ()) -> Path:
    """Stores the parts of a checkpoint that a resume reads."""
    folder = Path(record.storage_path) / record.run_names[-1] / f"checkpoint-{step}"
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text(json.dumps(config or CONFIG))
    StepNote(step, of_loss=list(of_loss)).save(folder)
    save_evaluations(folder, Evaluation(), Evaluation())
    write_manifest(folder, step)
    return folder


def resume(folder: Path, *words: str) -> RunRecord:
    return open_run(job(folder, "--resume_from_checkpoint", "true", *words))


def test_a_copy_that_is_overwritten_deletes_nothing_of_the_original(tmp_path):
    of_a = store(open_run(job(tmp_path / "a")), 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    record = open_run(job(tmp_path / "b", "--overwrite_output_dir"))
    assert of_a.is_dir() and record.storage_path == str(tmp_path / "b/checkpoints")
    assert not list((tmp_path / "b").rglob("manifest.json"))


def test_a_copy_goes_on_from_its_own_checkpoints_and_writes_into_its_own_folder(tmp_path):
    store(open_run(job(tmp_path / "a")), 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    record = resume(tmp_path / "b")
    assert record.storage_path == str(tmp_path / "b/checkpoints")
    assert record.resume_from and Path(record.resume_from).parents[2] == tmp_path / "b"


def test_the_checkpoint_of_another_run_where_a_run_began_stays_a_candidate(tmp_path):
    of_a, folder = store(open_run(job(tmp_path / "a")), 3), tmp_path / "b"
    record = open_run(job(folder, "--resume_from_checkpoint", str(of_a)))
    of_b = store(record, 5)
    for again in (record, resume(folder), resume(folder)):
        assert [one.location for one in again.checkpoints()] == [str(of_a), str(of_b)]
    assert resume(folder).resume_from == str(of_b)
    kept = json.loads((folder / "run.json").read_text())
    del kept["began_from"]  # as earlier versions wrote the record
    (folder / "run.json").write_text(json.dumps(kept | {"resume_from": str(of_a)}))
    assert resume(folder).began_from == str(of_a)
    shutil.rmtree(tmp_path / "a")
    assert [one.location for one in resume(folder).checkpoints()] == [str(of_b)]


def test_a_folder_that_was_moved_goes_on_where_it_is(tmp_path, capsys):
    store(open_run(job(tmp_path / "a")), 3)
    (tmp_path / "a").rename(tmp_path / "b")
    resume(tmp_path / "b")
    assert "resuming from step 3" in capsys.readouterr().out
    (tmp_path / "b").rename(tmp_path / "c")  # also when it has been resumed
    assert str(resume(tmp_path / "c").resume_from).startswith(str(tmp_path / "c/"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert "goes on with other settings" not in capsys.readouterr().out


def test_checkpoints_behind_a_link_are_the_originals(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/checkpoints").symlink_to(tmp_path / "disk")
    of_a = store(open_run(job(tmp_path / "a")), 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    open_run(job(tmp_path / "b", "--overwrite_output_dir"))
    assert of_a.is_dir()


def test_a_storage_elsewhere_is_not_the_copys(tmp_path, capsys):
    elsewhere = ["--storage_path", str(tmp_path / "s")]
    of_a = store(open_run(job(tmp_path / "a", *elsewhere)), 3)
    assert resume(tmp_path / "a", *elsewhere).resume_from == str(of_a)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(
        InputError, match=f"b: is a copy of {tmp_path}/a, to which the checkpoints in {tmp_path}/s belong; resume"
    ):
        resume(tmp_path / "b", *elsewhere)
    open_run(job(tmp_path / "b", *elsewhere, "--overwrite_output_dir"))
    assert of_a.is_dir() and f"{tmp_path}/s are left: they belong to {tmp_path}/a" in capsys.readouterr().out
    open_run(job(tmp_path / "a", *elsewhere, "--overwrite_output_dir"))
    assert not of_a.exists()


def test_a_record_of_an_earlier_version_is_read_where_it_was_written_and_shares_nothing(tmp_path):
    """Earlier versions named the storage by an absolute path."""
    of_a = store(open_run(job(tmp_path / "a")), 3)
    kept = json.loads((tmp_path / "a/run.json").read_text())
    del kept["location"]
    (tmp_path / "a/run.json").write_text(json.dumps(kept | {"storage_path": str(tmp_path / "a/checkpoints")}))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    open_run(job(tmp_path / "b", "--overwrite_output_dir"))
    assert resume(tmp_path / "a").resume_from == str(of_a)


def test_a_checkpoint_of_another_model_is_refused_before_anything_starts(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 64, "pad_token_id": 1}))
    record = open_run(job(tmp_path / "a"))
    store(record, 3)
    newest = store(record, 4, CONFIG | {"model_type": "mpnet"})
    for named, differs in (("true", "model_type mpnet, not bert, hidden_size 32, not 64"), (str(newest), "mpnet")):
        with pytest.raises(
            InputError, match=f"checkpoint-4 belongs to another model than --model_name_or_path m .*{differs}"
        ):
            check_output_dir(job(tmp_path / "a", "--resume_from_checkpoint", named), str(model))
    (model / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mpnet", "pad_token_id": 1}))
    check_output_dir(job(tmp_path / "a", "--resume_from_checkpoint", "true"), str(model))


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = store(open_run(job(tmp_path / "a")), 3)
    resumed = ["--resume_from_checkpoint", "true"]
    said = "checkpoint-3 was trained with {}, and this command asks for {}; pass the --lora_r"
    with pytest.raises(InputError, match=said.format("no LoRA", "LoRA of rank 8 and alpha 16")):
        check_output_dir(job(tmp_path / "a", *resumed, "--lora_r", "8"), str(model))
    (checkpoint / "adapter").mkdir()
    (checkpoint / "adapter/adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))
    for words, asked in (([], "no LoRA"), (["--lora_r", "8", "--lora_alpha", "8"], "LoRA of rank 8 and alpha 8")):
        with pytest.raises(InputError, match=said.format("LoRA of rank 8 and alpha 16", asked)):
            check_output_dir(job(tmp_path / "a", *resumed, *words), str(model))
    check_output_dir(job(tmp_path / "a", *resumed, "--lora_r", "8"), str(model))


def test_a_checkpoint_of_a_loss_with_other_parameters_is_refused_before_anything_starts(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    record = open_run(job(tmp_path / "a"))
    store(record, 3)
    words = ["--resume_from_checkpoint", "true", "--learn_temperature"]
    with pytest.raises(InputError, match="as that run had them$"):
        check_output_dir(job(tmp_path / "a", *words), str(model))
    store(record, 4, of_loss=("log_temperature",))
    check_output_dir(job(tmp_path / "a", *words), str(model))
    for other in (words[:2], [*words, "--matryoshka_dims", "8"]):
        with pytest.raises(InputError, match="give --learn_temperature and --matryoshka_dims as that run had them$"):
            check_output_dir(job(tmp_path / "a", *other), str(model))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "run.json: not JSON"),
        ("[]", "run.json: has to be a JSON object"),
        ("{}", "cannot read storage_path, run_names of its run.json; choose another folder, or delete"),
        ('{"storage_path": "s", "run_names": ["r"], "rounds": 3}', "cannot read rounds of its run.json"),
        ('{"storage_path": "s", "run_names": "r"}', "cannot read run_names of its run.json"),
    ],
)
@pytest.mark.parametrize("words", [["--overwrite_output_dir"], ["--resume_from_checkpoint", "true"]])
def test_a_record_that_cannot_be_read_is_one_line_before_anything_starts(tmp_path, content, said, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=said) as error:
        check_output_dir(job(tmp_path, *words), "m")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_checkpoint_with_another_head_is_refused(tmp_path):
    def save(folder: Path, *sizes: int) -> str:
        (folder / "2_Dense").mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        kinds = ["Transformer", "Pooling", "Dense", "Normalize"] if sizes else ["Transformer", "Pooling"]
        modules = [{"type": f"st.{kind}", "path": f"{place}_{kind}" * (place > 0)} for place, kind in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "2_Dense/config.json").write_text(json.dumps({"in_features": 32, "out_features": sum(sizes)}))
        return str(folder)

    trained = store(open_run(job(tmp_path / "a")), 3)
    save(trained / "model", 16)
    (trained / "manifest.json").unlink()
    write_manifest(trained, 3)
    again = job(tmp_path / "a", "--resume_from_checkpoint", "true")
    check_output_dir(again, save(tmp_path / "same", 16))
    for model, other in (
        (save(tmp_path / "bare"), "none"),
        (save(tmp_path / "wide", 24), r"Dense .*out_features 24\)"),
    ):
        with pytest.raises(InputError, match=rf"another model .*\(Dense \(.*out_features 16\), not {other}\);"):
            check_output_dir(again, model)


@pytest.mark.parametrize(
    ("folder", "begins"),
    [
        ("run-1", "run-1-2"),
        ("lauf_ü", "lauf_u-2"),
        ("my run", "my-run-2"),
        ("検索", "run-2"),
        ("a#b?c", "a-b-c-2"),
        ("x" * 250, "x" * 100 + "-2"),
    ],
)
def test_a_run_has_a_name_that_ray_takes_whatever_its_folder_is_called(folder, begins):
    name = new_run_name(Path("output") / folder)
    assert name.startswith(begins) and name.isascii() and name != new_run_name(Path("output") / folder)


def test_a_folder_that_holds_the_model_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"^--output_dir .*/out: has the input .*/out in it; choose another folder"):
        check_output_dir(job(tmp_path / "out", "--overwrite_output_dir"), str(tmp_path / "out"))
    check_output_dir(job(tmp_path / "out", "--overwrite_output_dir"), str(tmp_path / "model"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make files: /proc")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match="^--output_dir /proc/out: cannot be written"):
        check_output_dir(job(Path("/proc/out")), str(tmp_path))


def test_a_storage_with_credentials_is_recorded_without_them_and_found_by_a_command_that_has_them(tmp_path, capsys):
    storage = f"file://{tmp_path}/s?secret_key=PLANTED"
    elsewhere = ["--storage_path", storage]
    record = open_run(job(tmp_path / "a", *elsewhere))
    assert record.storage_path == storage
    of_a = store(replace(record, storage_path=str(tmp_path / "s")), 3)
    resumed = resume(tmp_path / "a", *elsewhere)
    assert (resumed.storage_path, resumed.resume_from) == (storage, f"file://{of_a}?secret_key=PLANTED")
    assert "goes on with other settings" not in capsys.readouterr().out
    assert "PLANTED" not in "".join(path.read_text() for path in (tmp_path / "a").iterdir())
    with pytest.raises(InputError, match="/s, and credentials are not stored; give --storage_path with them$"):
        resume(tmp_path / "a")
    with pytest.raises(InputError, match="stands for credentials, which are not stored; give the URI with its cred"):
        parse_job([str(tmp_path / "a/all_args.json")])
    again = parse_job([str(tmp_path / "a/all_args.json"), *elsewhere, "--output_dir", str(tmp_path / "b")])
    assert again.settings.storage_path == storage
