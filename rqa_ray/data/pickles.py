"""Reads a document database (`documents.pkl`) with an unpickler that runs nothing the file asks for.

A pickle is a program that may call any function. This unpickler imports nothing. It looks up each (module, name) of
the file in one fixed table of inert classes. There, the Documents of LocalRQA and langchain are bags that hold their
state, and the two helper functions of old protocols check their arguments. Every other name, persistent ids and
extension codes are refused. The result contains only str, dict and plain JSON.
"""

import io
import json
import pickle
import pickletools
from typing import Any, BinaryIO, NoReturn

from rqa_ray.data.files import MAX_LINE_BYTES
from rqa_ray.errors import InputError

_DOCUMENT_MODULES = (
    "local_rqa.schema.document",
    "open_rqa.schema.document",  # LocalRQA before its renaming
    "langchain.docstore.document",  # langchain moved its Document: one line for each module that has defined it
    "langchain.schema",
    "langchain.schema.document",
    "langchain_core.schema.document",
    "langchain_core.documents",
    "langchain_core.documents.base",
)

MAX_BYTES = 4 * 2**30

_CONVERT = (
    "write JSONL (page_content, fmt_content and metadata of one document a line) with the tool that made the pickle"
)


def load_documents(stream: BinaryIO, name: str) -> list[dict[str, Any]]:
    """Returns the documents of a pickled list of Documents, or of dicts with page_content, in the order of the file.

    Each document is `{"page_content": str, "fmt_content": str, "metadata": dict}`. Missing fmt_content is "", missing
    metadata is {}, and metadata can be written as JSON. The whole stream is read into memory.

    Raises:
        InputError: the file asks for anything but a Document, is damaged, or contains something else. The message is
            one line that starts with `name`. No other error is raised.
    """
    try:
        data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            _refuse(
                name, f"the pickle has more than {MAX_BYTES:,} bytes, all of which would be held in memory; {_CONVERT}"
            )
        _check_opcodes(data, name)
        content = _DocumentUnpickler(io.BytesIO(data), name).load()
    except InputError:
        raise
    except Exception as error:  # Damaged bytes make an unpickler raise nearly any error, also of gzip and memory.
        found = f"{type(error).__name__}: {error}"[:200]
        _refuse(name, f"cannot be read as a pickle ({found}); copy the file again or {_CONVERT}", error)
    if not isinstance(content, (list, tuple)):
        _refuse(name, f"the pickle is of type {type(content).__name__}, expected a list of Documents; {_CONVERT}")
    records, size = [], 0
    for index, item in enumerate(content):
        records.append(_raw_record(item, index, name))
        size += len(records[-1]["page_content"]) + len(records[-1]["fmt_content"])
        if size > MAX_BYTES:  # a pickle names a text again without storing it again
            _refuse(
                name, f"its documents have more than {MAX_BYTES:,} characters, far more than the pickle; {_CONVERT}"
            )
    return records


class _Document:
    """Stands for every Document class: holds its state and does nothing with it."""

    __slots__ = ("state",)
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Helper:
    """A helper function of old protocols.

    It is a class with `__setstate__`, so that BUILD cannot write attributes on it.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("state for a helper")


class _Reconstructor(_Helper):
    """Stands for `copyreg._reconstructor`, with which protocols 0 and 1 make an object.

    Makes an empty `_Document` only.
    """

    def __new__(cls, *args: Any) -> Any:
        if len(args) != 3 or args[0] is not _Document or args[1] is not object or args[2] is not None:
            raise pickle.UnpicklingError("an object that is not a Document")
        return _Document()


class _Set(_Helper):
    """Stands for `set`, which protocols below 4 call by name; pydantic keeps the names of fields in a set."""

    def __new__(cls, *args: Any) -> Any:
        if len(args) != 1 or type(args[0]) is not list:
            raise pickle.UnpicklingError("a set that is not made from a list")
        return set(args[0])


# Protocols 0 to 2 write the module names of Python 2.
_ALLOWED: dict[tuple[str, str], type] = {
    **{(module, "Document"): _Document for module in _DOCUMENT_MODULES},
    ("copyreg", "_reconstructor"): _Reconstructor,
    ("copy_reg", "_reconstructor"): _Reconstructor,
    ("builtins", "object"): object,
    ("__builtin__", "object"): object,
    ("builtins", "set"): _Set,
    ("__builtin__", "set"): _Set,
}


class _DocumentUnpickler(pickle.Unpickler):
    """Knows only the names in `_ALLOWED`. It never calls `super().find_class`, which would import."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__(stream)
        self._name = name

    def find_class(self, module: str, qualname: str, /) -> type:
        if (module, qualname) not in _ALLOWED:
            asked = ascii(f"{module}.{qualname}"[:200])
            _refuse(self._name, f"the pickle asks for {asked}, which was refused and did not run; {_CONVERT}")
        return _ALLOWED[module, qualname]

    def persistent_load(self, pid: Any) -> NoReturn:
        _refuse(self._name, f"the pickle refers to an object outside itself, which was refused; {_CONVERT}")


def _check_opcodes(data: bytes, name: str) -> None:
    """Reads the opcodes without running them, and refuses what `find_class` cannot see.

    Raises:
        InputError: an extension code, which the unpickler would look up past `find_class`; or bytes after the end,
            which would be documents that are lost.
        ValueError: the file is cut or no pickle, or a memo index is so large that its table would fill the memory.
    """
    end = 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            _refuse(name, f"the pickle asks for extension code {argument}, which was refused; {_CONVERT}")
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"memo index {argument} at byte {position} of {len(data)}")
        end = (position or 0) + 1
    if end != len(data):
        found = f"{len(data) - end} bytes after the end of the pickle at byte {end}"
        _refuse(name, f"{found}, expected one list and nothing more; pickle all documents as one list or {_CONVERT}")


def _raw_record(item: Any, index: int, name: str) -> dict[str, Any]:
    """Returns the three fields of one item; raises InputError with the index if the item is no document."""
    fields = item
    if isinstance(item, _Document):
        fields = getattr(item, "state", None)
        if isinstance(fields, dict):
            fields = fields.get("__dict__", fields)  # Both versions of pydantic put the fields one level deeper.
    if not isinstance(fields, dict):
        found = "a Document without fields" if isinstance(item, _Document) else f"of type {type(item).__name__}"
        _refuse(name, f"item {index} is {found}, expected a Document or a dict with page_content; {_CONVERT}")
    defaults: dict[str, Any] = {"page_content": None, "fmt_content": "", "metadata": {}}
    record = defaults | {field: fields[field] for field in defaults if not _is_missing(fields.get(field))}
    for field, expected in (("page_content", str), ("fmt_content", str), ("metadata", dict)):
        if not isinstance(record[field], expected):
            found = f"of type {type(fields[field]).__name__}" if field in fields else "missing"
            _refuse(name, f"item {index}: {field} is {found}, expected {expected.__name__}; {_CONVERT}")
    if _is_larger(list(record.values()), MAX_LINE_BYTES):
        _refuse(name, f"item {index} has more than {MAX_LINE_BYTES:,} bytes, which is no document; {_CONVERT}")
    try:
        json.dumps(record["metadata"])
    except (TypeError, ValueError, RecursionError, MemoryError) as error:
        _refuse(name, f"item {index}: metadata is not JSON ({error}); {_CONVERT}", error)
    return record


def _is_larger(value: Any, limit: int) -> bool:
    """Returns whether a value has more bytes than a limit, with each part counted as often as it is named."""
    found, waiting = 0, [value]
    while waiting and found <= limit:
        one = waiting.pop()
        found += len(one) if isinstance(one, (str, bytes)) else 64  # about what a small object takes
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
    return found > limit


def _is_missing(value: Any) -> bool:
    """Returns whether a value is None, or NaN, as which pandas writes a missing value."""
    return value is None or (isinstance(value, float) and value != value)


def _refuse(name: str, what: str, cause: Exception | None = None) -> NoReturn:
    """Raises InputError as one printable line, whatever bytes the file has in its names."""
    raise InputError("".join(c if c.isprintable() else " " for c in f"{name}: {what}")) from cause
