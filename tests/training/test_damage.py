"""Checksums find files that were damaged."""

from pyarrow import fs

from rqa_ray.training.damage import checksum, damaged_in_copy


def test_a_damaged_file_is_named_whether_a_file_or_its_folder_was_copied(tmp_path) -> None:
    (tmp_path / "copy").mkdir()
    file = tmp_path / "copy/weights"
    file.write_bytes(b"right")
    right = checksum(fs.LocalFileSystem(), str(file))
    sums = {"model/weights": right, "model_card": 0}  # a file beside the folder, whose name begins alike
    for name, copy in (("model/weights", file), ("model", tmp_path / "copy")):
        assert damaged_in_copy(name, copy, sums) is None
        assert damaged_in_copy(name, copy, sums | {"model/weights": right + 1}) == "model/weights"
    assert damaged_in_copy("model", tmp_path / "copy", sums | {"model/lacking": right}) == "model/lacking"
