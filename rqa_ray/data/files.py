"""Finds the input files that the user names and reads their lines, from local paths and any URI of pyarrow."""

import glob
import io
import os
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from rqa_ray.errors import InputError, first_line
from rqa_ray.places import HUB, file_size, hub_errors, open_file, open_random_access

LINES = (".jsonl", ".json")
COMPRESSED = (".gz", ".zst")
TABLES = (".csv", ".tsv")
DELIMITED = (*TABLES, *(table + end for table in TABLES for end in COMPRESSED))
MAX_LINE_BYTES = 2**26  # of a record; a file without line breaks, or that unpacks to one, would fill the memory
UNCOMPRESSED = 4  # assumed size of the text, as a multiple of the compressed file
# What Hugging Face's tools write about a data set. `state.json` counts only beside the first of them.
DATASET_NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
SUFFIXES = (*LINES, *(line + end for line in LINES for end in COMPRESSED), *DELIMITED, ".parquet", ".pkl")


def find_files(names: Iterable[str], argument: str) -> list[str]:
    """Returns absolute paths or URIs of the files that each name (a file, a glob, a folder, a URI) stands for.

    The order is that of the names, and sorted within one name. A folder stands for all files in and below it that can
    be read. A file with several names comes once. Names that begin with `_` or `.` (`_delta_log/`, `_SUCCESS`), and
    `DATASET_NOTES`, are other programs' notes on the data: folders and globs leave them out, unless the glob itself
    spells such a name.

    Raises:
        InputError: there is no file, or its suffix is unknown; the message names the flag `argument`.
    """
    found: dict[str, None] = {}
    for name in names:
        for path in _find_remote(name, argument) if "://" in name else _find_local(name, argument):
            if not has_suffix(path, *SUFFIXES):
                raise InputError(
                    f"--{argument} {path}: unknown kind of file; one of {', '.join(SUFFIXES)} can be read"
                )
            found[path if "://" in path else os.path.abspath(path)] = None
    return list(found)


def _find_local(name: str, argument: str) -> list[str]:
    matches = [name]
    if not os.path.exists(name):
        matches = [found for found in sorted(glob.glob(name, recursive=True)) if _is_data(found, name)]
    if not matches:
        raise InputError(f"--{argument} {name}: no such file")
    found = []
    for match in matches:
        if os.path.isdir(match):
            inner = [os.path.join(folder, item) for folder, _, items in os.walk(match) for item in items]
            found += [match + item for item in _readable([path[len(match) :] for path in inner], match, argument)]
        else:
            found.append(match)
    return found


def _find_remote(uri: str, argument: str) -> list[str]:
    base, question_mark, query = uri.partition("?")
    is_encoded = not uri.startswith(HUB)
    try:
        with hub_errors(uri):
            encoded = uri.replace("[", "%5B").replace("]", "%5D") if is_encoded else uri
            filesystem, path = fs.FileSystem.from_uri(encoded)
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.File:
                return [uri]
            if info.type == fs.FileType.Directory:
                root = path.rstrip("/")
                items = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
                inner = [item.path[len(root) :] for item in items if item.is_file]
            else:  # a glob, or nothing; found paths begin like the pattern, up to its first part with wildcards
                parts = path.split("/")
                fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
                root, base = "/".join(parts[:fixed]), "/".join(base.split("/")[: fixed - len(parts) or None])
                matches = ArrowFSWrapper(filesystem).glob(path, detail=True) if fixed < len(parts) else {}
                is_file = {
                    match: found["type"] == "file" and _is_data(match, path) for match, found in matches.items()
                }
                inner = [match[len(root) :] for match in sorted(matches) if is_file[match]]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--{argument} {uri}: cannot be opened ({first_line(error)})") from None
    if info.type == fs.FileType.Directory:
        inner = _readable(inner, uri, argument)
    if not inner:
        raise InputError(f"--{argument} {uri}: no such file")
    return [base.rstrip("/") + (quote(item) if is_encoded else item) + question_mark + query for item in inner]


def _readable(inner: list[str], name: str, argument: str) -> list[str]:
    """Returns, sorted, the paths in a folder that are data and have a known suffix."""
    saved = [os.path.dirname(item) for item in inner if os.path.basename(item) == DATASET_NOTES[0]]
    states = {os.path.join(folder, "state.json") for folder in saved}
    kept = sorted(item for item in inner if item.endswith(SUFFIXES) and not _notes(item) and item not in states)
    if not kept:
        raise InputError(f"--{argument} {name}: a folder without {', '.join(SUFFIXES)} files")
    return kept


def _notes(path: str) -> list[str]:
    """Returns the parts of a path that are other programs' notes."""
    names = path.split("/")
    return [name for name in names if name in DATASET_NOTES or (name.startswith(("_", ".")) and name.strip("."))]


def _is_data(match: str, pattern: str) -> bool:
    """Returns whether a path that a glob found is data."""
    return set(_notes(match)) <= set(_notes(pattern)) or any(glob.has_magic(name) for name in _notes(pattern))


def has_suffix(path: str, *suffixes: str) -> bool:
    """Returns whether a path, or a URI without its query, ends in one of the suffixes."""
    return (path.partition("?")[0] if "://" in path else path).endswith(suffixes)


def text_bytes(path: str) -> int:
    """Estimates how many bytes of text a file has."""
    return file_size(path) * (1 if has_suffix(path, *LINES, *TABLES) else UNCOMPRESSED)


def byte_ranges(path: str, range_bytes: int) -> list[tuple[int, int | None]]:
    """Returns (start, end) of the parts of a file that are read in parallel.

    (0, None) for small or compressed files.
    """
    if not has_suffix(path, *LINES):
        return [(0, None)]
    size = file_size(path)
    if size <= range_bytes:
        return [(0, None)]
    return [(start, min(start + range_bytes, size)) for start in range(0, size, range_bytes)]


def lines_before(path: str, start: int) -> int:
    """Counts the lines that begin before the first line of a range of bytes."""
    count = int(start > 0)  # the last of them ends at the byte before the range, or later
    with open_random_access(path) as file:
        while file.tell() < start - 1:
            count += file.read(min(2**20, start - 1 - file.tell())).count(b"\n")
    return count


def read_lines(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields (number, bytes) of the lines that begin within a range of bytes, without blank lines and byte-order mark.

    Lines are numbered from `start` + 1. In a whole file this is how people count lines. In a range, it puts the
    numbers of all ranges in the order of the file. A line longer than `MAX_LINE_BYTES` is cut to one byte more than
    that.
    """
    place = start
    with open_file(path) if end is None else io.BufferedReader(open_random_access(path)) as file:
        if start:  # skip the rest of a line that began before the range
            file.seek(start - 1)
            place -= 1
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                place += len(rest)
            place += len(rest)
        number = start
        while end is None or place < end:
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            place += len(line)
            number += 1
            if place == len(line):
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES + 1) or b"\n"
                place += len(line)
