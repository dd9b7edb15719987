"""Finds files that were damaged after they were stored, by their checksums."""

from __future__ import annotations

import zlib

from pyarrow import fs

PART_BYTES = 2**23  # that are read at a time


def checksum(filesystem: fs.FileSystem, path: str) -> int:
    """Returns the CRC-32 of a file."""
    found = 0
    with filesystem.open_input_stream(path) as file:
        while part := file.read(PART_BYTES):
            found = zlib.crc32(part, found)
    return found


def first_damaged(filesystem: fs.FileSystem, folder: str, sums: dict[str, int]) -> str | None:
    """Returns the first file whose checksum is not the one in `sums`, which is by name; None if all are right."""
    for name, wanted in sums.items():
        path = f"{folder}/{name}"
        if filesystem.get_file_info(path).type != fs.FileType.File or checksum(filesystem, path) != wanted:
            return name
    return None
