"""Finds files that were damaged after they were stored, by their checksums."""

from __future__ import annotations

import zlib
from pathlib import Path

from pyarrow import fs

PART_BYTES = 2**23  # that are read at a time


def checksum(filesystem: fs.FileSystem, path: str) -> int:
    """Returns the CRC-32 of a file."""
    found = 0
    with filesystem.open_input_stream(path) as file:
        while part := file.read(PART_BYTES):
            found = zlib.crc32(part, found)
    return found


def first_damaged(filesystem: fs.FileSystem, start: str, sums: dict[str, int]) -> str | None:
    """Returns the first file whose checksum is another one than in `sums`; None if all are right.

    `sums` are by what stands behind `start` in the path of each file, and so is the result.
    """
    for rest, wanted in sums.items():
        path = f"{start}{rest}"
        if filesystem.get_file_info(path).type != fs.FileType.File or checksum(filesystem, path) != wanted:
            return rest
    return None


def damaged_in_copy(name: str, copy: Path, sums: dict[str, int]) -> str | None:
    """Returns the first damaged file in the local copy of a file or folder `name`, so that storage is read once.

    `sums` are the checksums of all files beside the original, by name.
    """
    own = {path.removeprefix(name): of for path, of in sums.items() if path == name or path.startswith(f"{name}/")}
    rest = first_damaged(fs.LocalFileSystem(), str(copy), own)
    return None if rest is None else name + rest
