"""Input files on a real disk: which files a name stands for, and their lines."""

import gzip
import os

import pyarrow as pa
import pytest

from rqa_ray.data.files import find_files, has_suffix, read_lines
from rqa_ray.errors import InputError
from rqa_ray.places import open_file


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(found: list[str]) -> list[str]:
    return [os.path.basename(path) for path in found]


def lines(path, content: bytes) -> list[tuple[int, bytes]]:
    path.write_bytes(content)
    return list(read_lines(str(path)))


# What a name stands for


def test_a_file_is_found_by_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_files(["a.jsonl"], "train_file") == [str(folder / "a.jsonl")]


def test_a_glob_finds_its_files_in_order(folder):
    assert names(find_files([str(folder / "*.jsonl*")], "train_file")) == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder):
    (folder / "a[1].jsonl").write_bytes(b"")
    assert names(find_files([str(folder / "a[1].jsonl")], "train_file")) == ["a[1].jsonl"]


def test_a_folder_stands_for_the_files_in_it_that_can_be_read(folder):
    assert names(find_files([str(folder)], "train_file")) == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]


def test_a_folder_stands_for_files_below_it_too_and_for_none_that_are_hidden(folder):
    for name in ("deep/er/d.parquet", ".cache/e.jsonl", "deep/.f.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    expected = ["a.jsonl", "b.jsonl", "c.jsonl.gz", "deep/er/d.parquet"]
    assert find_files([str(folder)], "train_file") == [str(folder / name) for name in expected]
    assert find_files([f"file://{folder}"], "train_file") == [f"file://{folder}/{name}" for name in expected]


METADATA = ["_delta_log/00.json", ".cache/e.jsonl", "year=1/_temporary/f.parquet", "_SUCCESS.json", "year=1/.g.json"]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("end", ["", "/**/*.*json*"])
def test_names_that_begin_with_an_underscore_or_a_dot_are_no_data_in_a_folder_or_a_glob(tmp_path, scheme, end):
    for name in (*METADATA, "year=1/d.json"):
        (tmp_path / "_own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "_own" / name).write_bytes(b"{}")
    found = find_files([f"{scheme}{tmp_path}/_own{end}"], "train_file")
    assert found == [f"{scheme}{tmp_path}/_own/year{'%3D' if scheme else '='}1/d.json"]
    spelled = find_files([f"{scheme}{tmp_path}/_own/_delta_log{end and '/*.json'}"], "train_file")
    assert names(spelled) == ["00.json"]
    assert names(find_files([f"{scheme}{tmp_path}/_own/_S*.json"], "train_file")) == ["_SUCCESS.json"]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("end", ["", "/"])
def test_what_hugging_face_writes_about_a_data_set_is_no_data(tmp_path, scheme, end):
    for name in ("a/documents.json", "a/dataset_info.json", "a/state.json", "b/state.json", "dataset_infos.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    found = find_files([f"{scheme}{tmp_path}{end}"], "train_file")
    assert found == [f"{scheme}{tmp_path}/a/documents.json", f"{scheme}{tmp_path}/b/state.json"]
    assert names(find_files([f"{scheme}{tmp_path}/*/d*.json"], "train_file")) == ["documents.json"]
    assert names(find_files([f"{scheme}{tmp_path}/a/dataset_info.json"], "train_file")) == ["dataset_info.json"]


def test_several_names_keep_their_order_and_a_file_comes_once(folder):
    found = find_files([str(folder / "b.jsonl"), str(folder / "*.jsonl"), str(folder / "c.jsonl.gz")], "train_file")
    assert names(found) == ["b.jsonl", "a.jsonl", "c.jsonl.gz"]


def test_a_uri_may_be_a_glob_over_files_and_folders(folder):
    for name in ("x1/d.jsonl", "x2/d.jsonl", "y/d.jsonl", "x1/deep/d.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    found = find_files([f"file://{folder}/x*/*.jsonl"], "train_file")
    assert found == [f"file://{folder}/x1/d.jsonl", f"file://{folder}/x2/d.jsonl"]
    assert list(read_lines(found[0])) == [(1, b"{}")]


def test_two_stars_in_a_uri_stand_for_any_folders_as_in_a_path(folder):
    for name in ("x/d.jsonl", "x/y/e.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    expected = ["a.jsonl", "b.jsonl", "x/d.jsonl", "x/y/e.jsonl"]
    assert find_files([f"file://{folder}/**/*.jsonl"], "train_file") == [
        f"file://{folder}/{name}" for name in expected
    ]
    assert sorted(find_files([f"{folder}/**/*.jsonl"], "train_file")) == [str(folder / name) for name in expected]


def test_a_uri_is_kept_as_it_is(folder):
    uri = f"file://{folder}/a.jsonl?region=x"
    assert find_files([uri], "train_file") == [uri]
    assert list(read_lines(uri)) == []


def test_the_uri_of_a_folder_stands_for_uris_of_the_files_in_it_that_can_be_read(folder):
    (folder / "with space.jsonl").write_bytes(b"{}")
    found = find_files([f"file://{folder}/?region=x"], "train_file")
    assert [uri.removeprefix(f"file://{folder}/") for uri in found] == [
        "a.jsonl?region=x",
        "b.jsonl?region=x",
        "c.jsonl.gz?region=x",
        "with%20space.jsonl?region=x",
    ]
    assert list(read_lines(found[-1])) == [(1, b"{}")]


def test_the_query_of_a_uri_does_not_hide_its_suffix():
    assert has_suffix("s3://bucket/documents.pkl?endpoint_override=localhost:5000", ".pkl")
    assert not has_suffix("documents.txt?x=.pkl/", ".pkl")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing*.jsonl", "file://{}/missing.jsonl"])
def test_a_name_that_stands_for_nothing_is_refused_with_its_flag(folder, name):
    name = name.format(folder) if "://" in name else str(folder / name)
    with pytest.raises(InputError) as error:
        find_files([name], "train_file")
    assert str(error.value) == f"--train_file {name}: no such file"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_without_files_that_can_be_read_is_refused(tmp_path, scheme):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"^--eval_file .*: a folder without \.jsonl, .* files$"):
        find_files([f"{scheme}{tmp_path}"], "eval_file")


@pytest.mark.parametrize("name", ["notes.txt", "*"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(folder, name):
    with pytest.raises(
        InputError, match=r"^--eval_file .*notes\.txt: unknown kind of file; one of \.jsonl, .* can be"
    ):
        find_files([str(folder / name)], "eval_file")


@pytest.mark.parametrize("uri", ["nowhere://bucket/a.jsonl", "file://a b.jsonl"])
def test_a_uri_that_cannot_be_opened_is_refused_in_one_line(uri):
    with pytest.raises(InputError, match=r"^--train_file \S+.*: cannot be opened \([^\n]+\)$"):
        find_files([uri], "train_file")


# Lines


def test_lines_are_numbered_from_1_and_blank_ones_are_counted_but_left_out(tmp_path):
    assert lines(tmp_path / "f.jsonl", b"\n{}\n  \t\n\n[1]\n\n") == [(2, b"{}\n"), (5, b"[1]\n")]


def test_a_last_line_needs_no_line_break(tmp_path):
    assert lines(tmp_path / "f.jsonl", b"{}\n[1]") == [(1, b"{}\n"), (2, b"[1]")]


def test_an_empty_file_has_no_lines(tmp_path):
    assert lines(tmp_path / "f.jsonl", b"") == []


def test_windows_line_ends_count_as_one(tmp_path):
    found = lines(tmp_path / "f.jsonl", b"{}\r\n\r\n[1]\r\n")
    assert [(number, line.strip()) for number, line in found] == [(1, b"{}"), (3, b"[1]")]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_only_a_newline_ends_a_line(tmp_path, character):
    line = f'"one{character}line"\n'.encode()
    assert lines(tmp_path / "f.jsonl", line + b"{}\n") == [(1, line), (2, b"{}\n")]


def test_a_byte_order_mark_is_left_out_of_the_first_line_only(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert lines(tmp_path / "f.jsonl", mark + b"{}\n" + mark + b"[1]\n") == [(1, b"{}\n"), (2, mark + b"[1]\n")]


def test_a_file_of_a_byte_order_mark_only_has_no_lines(tmp_path):
    assert lines(tmp_path / "f.jsonl", b"\xef\xbb\xbf\n") == []


def test_gzip_is_known_by_its_suffix(tmp_path):
    assert lines(tmp_path / "f.jsonl.gz", gzip.compress(b"{}\n\n[1]\n")) == [(1, b"{}\n"), (3, b"[1]\n")]


def test_zstandard_is_known_by_its_suffix(tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "f.jsonl.zst"), "zstd") as file:
        file.write(b"{}\n\n[1]\n")
    assert list(read_lines(str(tmp_path / "f.jsonl.zst"))) == [(1, b"{}\n"), (3, b"[1]\n")]


def test_a_line_longer_than_any_buffer_is_one_line(tmp_path):
    line = b'"' + b"x" * 3_000_000 + b'"\n'
    for name, content in (("f.jsonl", line + b"{}"), ("f.jsonl.gz", gzip.compress(line + b"{}"))):
        assert lines(tmp_path / name, content) == [(1, line), (2, b"{}")]


def test_a_damaged_gzip_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        lines(tmp_path / "f.jsonl.gz", gzip.compress(b"{}\n" * 100_000)[:100])


def test_a_pickle_is_given_byte_by_byte(tmp_path):
    (tmp_path / "d.pkl").write_bytes(b"\x80\x04]\r\n\x94.")
    with open_file(str(tmp_path / "d.pkl")) as file:
        assert file.read() == b"\x80\x04]\r\n\x94."
