"""Files are complete or absent, whatever happens while they are written."""

import os
import shutil
from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.places import (
    check_local_folder,
    check_writable,
    file_content,
    inside,
    read_json,
    refuse_among_inputs,
    refuse_files_of_others,
    refuse_temporary,
    staged,
    with_suffix,
    within,
    write_json,
)


def test_staged_files_are_in_the_folder_when_the_block_has_ended_and_not_before(tmp_path):
    with staged(tmp_path / "out") as staging:
        (staging / "1_Pooling").mkdir()
        (staging / "1_Pooling" / "config.json").write_text("{}")
        (staging / "a.json").write_text("1")
        assert not (tmp_path / "out" / "a.json").exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"out", "out/a.json", "out/1_Pooling", "out/1_Pooling/config.json"}


def test_a_failure_while_staging_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a.json").write_text("earlier")
    with pytest.raises(OSError, match="disk full"), staged(tmp_path) as staging:
        (staging / "a.json").write_text("half")
        (staging / "b.json").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "earlier"


def test_staged_files_replace_earlier_ones_and_leave_others_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.json", "sub/a.json", "sub/mine.txt"):
        (tmp_path / name).write_text("earlier")
    with staged(tmp_path) as staging:
        (staging / "sub").mkdir()
        for name in ("a.json", "sub/a.json"):
            (staging / name).write_text("new")
    texts = {name: (tmp_path / name).read_text() for name in ("a.json", "sub/a.json", "sub/mine.txt")}
    assert texts == {"a.json": "new", "sub/a.json": "new", "sub/mine.txt": "earlier"}


def test_what_a_killed_run_had_staged_is_not_moved_by_the_next(tmp_path):
    (tmp_path / ".staging").mkdir()
    (tmp_path / ".staging" / "old.json").write_text("half")
    with staged(tmp_path) as staging:
        (staging / "new.json").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]


def test_the_last_staged_file_is_moved_after_all_others_and_a_kill_in_between_blocks_no_later_run(
    tmp_path, monkeypatch
):
    moved, replace = [], os.replace

    def killed(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *given, **options: None)  # a killed process does not tidy up
    with pytest.raises(KeyboardInterrupt), staged(tmp_path, last="a.json") as staging:
        for name in ("a.json", "b.json", "c.json"):
            (staging / name).write_text("new")
    assert moved == ["b.json", "c.json"]
    refuse_files_of_others(tmp_path, moved)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / ".staging")
    with pytest.raises(InputError, match=r"has b\.json, which no finished run of this job wrote"):
        refuse_files_of_others(tmp_path, moved)


def test_json_is_written_and_read_again_with_nothing_beside_it(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None, "ü"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_json_file_that_is_not_there_is_none(tmp_path):
    assert read_json(tmp_path / "a.json") is None


def test_a_folder_in_rays_copy_of_the_working_directory_is_refused(tmp_path, monkeypatch) -> None:
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(InputError, match="^--output_dir out: relative, and this job runs in a temporary copy"):
        refuse_temporary("out")
    refuse_temporary(str(tmp_path / "out"))
    refuse_temporary("s3://bucket/out")


@pytest.mark.parametrize(
    ("location", "folder", "name"),
    [
        ("/a/out/checkpoints/x", "/a/out", "checkpoints/x"),
        ("/a/out", "/a/out", "."),
        ("/a/output/x", "/a/out", None),
        ("/a", "/a/out", None),
        ("s3://b/out/x?region=r", "s3://b/out?region=r", "x"),
        ("s3://b/out/x", "s3://b/out/?region=r", None),
        ("s3://b/output", "s3://b/out", None),
        ("/b/out/x", "s3://b/out", None),
    ],
)
def test_a_location_within_a_folder_is_named_from_there(location, folder, name):
    assert within(location, folder) == name
    assert name in (None, ".") or inside(folder, name) == location


def test_what_a_link_in_a_folder_leads_to_lies_elsewhere(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/checkpoints").symlink_to(tmp_path)
    assert within(str(tmp_path / "out/checkpoints/x"), str(tmp_path / "out")) is None


@pytest.mark.parametrize(
    ("output", "name", "file", "message"),
    [
        ("/a/data", "/a/data/d.jsonl", "/a/data/d.jsonl", "/a/data: has the input /a/data/d.jsonl in it"),
        ("/a", "/a/data", "/a/data/x/d.jsonl", "/a: has the input /a/data/x/d.jsonl in it"),
        ("/a/data/out", "/a/data", "/a/data/d.jsonl", "/a/data/out: is in the input /a/data"),
        (
            "s3://b/data?region=r",
            "s3://b/data/*?region=r",
            "s3://b/data/d.jsonl?region=r",
            "s3://b/data: has the input",
        ),
        ("/a/out", "/a/data/d.jsonl", "/a/data/d.jsonl", None),
        ("/a/data-out", "/a/data", "/a/data/d.jsonl", None),
        ("/a/out", "s3://b/a/out", "s3://b/a/out/d.jsonl", None),
    ],
)
def test_a_folder_among_the_inputs_is_no_output(output, name, file, message):
    if message:
        with pytest.raises(InputError, match=f"^--output_dir {message}"):
            refuse_among_inputs("output_dir", output, [name], [file])
    else:
        refuse_among_inputs("output_dir", output, [name], [file])


def test_a_suffix_comes_before_the_query():
    assert (with_suffix("out/", "-2"), with_suffix("s3://b/out?x=1", "-2")) == ("out-2", "s3://b/out-2?x=1")


def test_a_file_is_told_by_its_content_and_not_by_its_name_or_time(tmp_path):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("one")
    other.write_text("one")
    os.utime(other, ns=(1, 1))
    assert file_content(str(file)) == file_content(str(other)) == file_content(f"file://{other}")
    other.write_text("two")
    os.utime(other, ns=(1, 1))
    assert file_content(str(file)) != file_content(str(other))


@pytest.mark.parametrize("name", ["file", "file/x", "x" * 300, "s3://bucket/x"])
def test_what_cannot_be_a_local_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    place = name if "://" in name else str(tmp_path / name)
    with pytest.raises(InputError, match=f"^--output_dir {place}: (cannot be a folder|a URI)"):
        check_local_folder(place)
    check_local_folder(str(tmp_path))
    check_local_folder(str(tmp_path / "new/folder"))


def test_a_json_file_has_an_object_or_is_not_there(tmp_path):
    file = tmp_path / "a.json"
    assert read_json(file) is None
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    for content, said in (("{", "not JSON"), ("[1]", "has to be a JSON object")):
        file.write_text(content)
        with pytest.raises(InputError, match=f"^{file}: {said}"):
            read_json(file)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make files: /proc")
@pytest.mark.parametrize("name", ["/proc", "/proc/out", "/proc/self/a/b"])
def test_a_folder_in_which_no_file_can_be_made_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=f"^--output_dir {name}: cannot be written .*; choose another$"):
        check_writable(name)
    with pytest.raises(InputError, match=f"^--output_dir {name}: cannot be written"):
        check_local_folder(name)


def test_the_check_of_a_folder_leaves_no_file_and_makes_no_folder(tmp_path):
    check_writable(str(tmp_path))
    check_writable(str(tmp_path / "a/b"))
    assert not list(tmp_path.iterdir())
