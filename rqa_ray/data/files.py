"""Input files: finding them from what the user named, and reading their lines; local paths and any URI of pyarrow."""

import glob
import io
import os
from collections.abc import Iterator
from urllib.parse import quote

from pyarrow import fs

from rqa_ray.errors import InputError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".pkl")


def find_files(name: str, argument: str) -> list[str]:
    """Absolute paths or URIs of the files that `name` (a file, a glob, a folder, a URI) stands for, sorted.

    Raises:
        InputError: there is none, or a suffix is unknown; `argument` is the flag to blame.
    """
    if "://" in name:
        found = _find_remote(name, argument)
    elif os.path.isdir(name):
        found = sorted(os.path.join(name, item) for item in os.listdir(name) if item.endswith(SUFFIXES))
        if not found:
            raise InputError(f"--{argument} {name}: a folder without {', '.join(SUFFIXES)} files")
    else:
        found = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not found:
            raise InputError(f"--{argument} {name}: no such file")
    for path in found:
        if not has_suffix(path, *SUFFIXES):
            raise InputError(f"--{argument} {path}: unknown kind of file; one of {', '.join(SUFFIXES)} can be read")
    return [path if "://" in path else os.path.abspath(path) for path in found]


def _find_remote(uri: str, argument: str) -> list[str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            items = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            inner = [item.path[len(path.rstrip("/")) :] for item in items if item.is_file]
    except (OSError, ValueError) as error:
        raise InputError(f"--{argument} {uri}: cannot be opened ({str(error).splitlines()[0]})") from None
    if info.type == fs.FileType.NotFound:
        raise InputError(f"--{argument} {uri}: no such file")
    if info.type != fs.FileType.Directory:
        return [uri]
    folder, question_mark, query = uri.partition("?")
    found = sorted(folder.rstrip("/") + quote(name) for name in inner if name.endswith(SUFFIXES))
    if not found:
        raise InputError(f"--{argument} {uri}: a folder without {', '.join(SUFFIXES)} files")
    return [path + question_mark + query for path in found]


def has_suffix(path: str, *suffixes: str) -> bool:
    """Whether a path, or a URI without its query, ends in one of the suffixes."""
    return (path.partition("?")[0] if "://" in path else path).endswith(suffixes)


def open_file(path: str) -> io.BufferedReader:
    """The bytes of a file, decompressed by its suffix."""
    filesystem, inner = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    return io.BufferedReader(filesystem.open_input_stream(inner, compression="detect"))


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes) of the lines that are not blank; a byte-order mark is left out."""
    with open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line
