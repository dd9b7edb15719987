"""A document database is read completely, and nothing that a pickle asks for is ever run."""

import copyreg
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa_ray.data import pickles
from rqa_ray.data.pickles import load_documents
from rqa_ray.errors import InputError
from tests.builders import dataclass_document, pickled

PROTOCOLS = range(6)
FAIRE = Path(__file__).parents[2].parent / "shared/data/faire/documents.pkl"
TWO = [
    {"page_content": "first\né €", "fmt_content": "", "metadata": {"source": "a.html", "deep": {"x": [1, 2.5, None]}}},
    {"page_content": "second", "fmt_content": "", "metadata": {}},
]


def load(data: bytes) -> list[dict[str, Any]]:
    return load_documents(io.BytesIO(data), "docs.pkl")


def refused(data: bytes) -> str:
    """Returns the message of the InputError, which has to be one line that starts with the path."""
    with pytest.raises(InputError) as caught:
        load(data)
    message = str(caught.value)
    assert message.startswith("docs.pkl: ") and message.isprintable() and "JSONL" in message
    return message


def pydantic_1_document() -> type:
    if sys.version_info >= (3, 14):
        pytest.skip("pydantic 1 does not run on Python 3.14 and later")
    from pydantic import v1

    class Document(v1.BaseModel):
        page_content: str
        metadata: dict = v1.Field(default_factory=dict)
        _lc_kwargs: dict = v1.PrivateAttr(default_factory=dict)

    return Document


def pydantic_2_document() -> type:
    class Document(pydantic.BaseModel):
        page_content: str
        metadata: dict = pydantic.Field(default_factory=dict)
        id: str | None = None

    return Document


def two(document: type) -> list[Any]:
    return [document(**{key: value for key, value in fields.items() if key != "fmt_content"}) for fields in TWO]


GENUINE = [
    (dataclass_document, "local_rqa.schema.document"),
    (dataclass_document, "open_rqa.schema.document"),
    (pydantic_1_document, "langchain.docstore.document"),
    (pydantic_1_document, "langchain.schema"),
    (pydantic_1_document, "langchain.schema.document"),
    (pydantic_1_document, "langchain_core.schema.document"),
    (pydantic_1_document, "langchain_core.documents"),
    (pydantic_1_document, "langchain_core.documents.base"),
    (pydantic_2_document, "langchain_core.documents.base"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("make_class", "module"), GENUINE)
def test_documents_load_without_the_package_that_made_them(make_class, module, protocol):
    data = pickled(make_class, module, two, protocol)
    assert load(data) == TWO
    assert not [name for name in sys.modules if name.split(".")[0] == module.split(".")[0]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_installed_document_class_is_neither_made_nor_asked(protocol, monkeypatch):
    data = pickled(dataclass_document, "local_rqa.schema.document", two, protocol)

    class Document:
        def __new__(cls):
            raise AssertionError("the foreign class was called")

        def __setstate__(self, state):
            raise AssertionError("the foreign class was given the state")

    module = types.ModuleType("local_rqa.schema.document")
    vars(module)["Document"] = Document
    monkeypatch.setitem(sys.modules, "local_rqa.schema.document", module)
    assert load(data) == TWO


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fmt_content_is_kept_and_a_fmt_content_of_none_is_empty(protocol):
    def build(document: type) -> list[Any]:
        return [document("a", fmt_content="Content:\na"), document("b", fmt_content=None)]

    data = pickled(dataclass_document, "local_rqa.schema.document", build, protocol)
    assert [record["fmt_content"] for record in load(data)] == ["Content:\na", ""]


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_dicts_load(protocol, container):
    dicts = container([TWO[0], {"page_content": "second", "score": 0.5}])
    assert load(pickle.dumps(dicts, protocol)) == TWO


def test_an_empty_list_is_no_documents():
    assert load(pickle.dumps([])) == []


@pytest.mark.skipif(not FAIRE.exists(), reason=f"the Faire documents are not at {FAIRE}")
def test_the_faire_database_loads():
    with FAIRE.open("rb") as stream:
        records = load_documents(stream, str(FAIRE))
    assert len(records) == 1758
    assert all(record["fmt_content"].startswith("Source: ") and record["metadata"]["title"] for record in records)


# Payloads: each makes a file, the canary, when a plain `pickle.loads` reads it.


class Call:
    """Pickles to the instruction "call this function with these arguments"."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """Exists only because the pickler wants a function; the pickle calls what `self.call` has returned."""


PAYLOADS: dict[str, Callable[[str], Any]] = {
    "posix.system": lambda canary: Call(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Call(eval, f"open({canary!r}, 'w').close()"),
    "builtins.exec": lambda canary: Call(exec, f"open({canary!r}, 'w').close()"),
    "builtins.open": lambda canary: Call(open, canary, "w"),
    "subprocess.Popen": lambda canary: Call(subprocess.Popen, ["touch", canary]),
    "subprocess.check_call": lambda canary: Call(subprocess.check_call, ["touch", canary]),
    "builtins.getattr": lambda canary: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {canary}"),
}


PLACES: dict[str, Callable[[type, Any], Any]] = {
    "alone": lambda document, payload: payload,
    "list item": lambda document, payload: [document("a"), payload],
    "metadata": lambda document, payload: [document("a", metadata={"source": [payload]})],
    "page_content": lambda document, payload: [document(payload)],
    "unread field": lambda document, payload: [{"page_content": "a", "other": payload}],
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_of_this_file_are_real(payload, protocol, canary):
    result = pickle.loads(pickle.dumps(PAYLOADS[payload](str(canary)), protocol))
    if isinstance(result, subprocess.Popen):
        result.wait()
    elif isinstance(result, io.IOBase):
        result.close()
    assert canary.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_named_and_never_runs(payload, place, protocol, canary):
    def build(document: type) -> Any:
        return PLACES[place](document, PAYLOADS[payload](str(canary)))

    message = refused(pickled(dataclass_document, "local_rqa.schema.document", build, protocol))
    assert payload.split(".")[1] in message
    assert "did not run" in message
    assert not canary.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def by_name(module: str, qualname: str, form: str = "STACK_GLOBAL") -> bytes:
    if form == "GLOBAL":
        return f"c{module}\n{qualname}\n".encode()
    return text(module) + text(qualname) + b"\x93"


DOCUMENT = by_name("local_rqa.schema.document", "Document")
RECONSTRUCTOR = by_name("copyreg", "_reconstructor")
OBJECT = by_name("builtins", "object")
SET = by_name("builtins", "set")
EMPTY_DOCUMENT = DOCUMENT + b")\x81"


@pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL"])
@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("builtins", "frozenset"),
        ("copyreg", "__newobj__"),
        ("functools", "partial"),
        ("collections", "OrderedDict"),
        ("rqa_ray.data.pickles", "_Document"),
        ("local_rqa.schema.document", "Document.__init__"),
        ("local_rqa.schema.document", "Document.__setstate__.__globals__"),
        ("local_rqa.schema.document", "deepcopy"),
        ("local_rqa.schema", "document.Document"),
        ("langchain.schema", "document.Document"),
        ("builtins", "object.__subclasses__"),
        ("builtins", "set.__init__"),
        ("copyreg", "_reconstructor.__globals__"),
    ],
)
def test_only_exact_names_are_known_and_dots_are_not_followed(module, qualname, form, canary):
    call = by_name(module, qualname, form) + text(f"touch {canary}") + b"\x85R."
    assert f"'{module}.{qualname}'" in refused(b"\x80\x04" + call)
    assert not canary.exists()


def test_the_old_opcodes_that_make_objects_by_name_are_refused_too(canary):
    command = f"S'touch {canary}'\n".encode()
    assert "'posix.system'" in refused(b"(" + command + b"iposix\nsystem\n.")
    assert "'posix.system'" in refused(b"(cposix\nsystem\n" + command + b"o.")
    assert not canary.exists()


def test_a_name_with_control_characters_is_printed_as_one_harmless_line():
    message = refused(b"\x80\x04" + by_name("os\n\x1b[2J", "sys\rtem\u2028") + b".")
    assert "\\n\\x1b[2J" in message


@pytest.mark.parametrize("opcode", [b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"])
def test_extension_codes_are_refused_even_when_the_process_has_them_cached(opcode, canary):
    copyreg.add_extension("posix", "system", 7)
    try:
        data = b"\x80\x02" + opcode + text(f"touch {canary}") + b"\x85R."
        assert pickle.loads(data) == 0  # Real, and from here on in the cache of the unpickler.
        canary.unlink()
        assert "extension code 7" in refused(data)
    finally:
        copyreg.remove_extension("posix", "system", 7)
    assert not canary.exists()
    assert "extension code 7" in refused(data)


@pytest.mark.parametrize("data", [b"P1\n.", b"\x80\x02" + text("1") + b"Q."])
def test_persistent_ids_are_refused(data):
    assert "outside itself" in refused(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(RECONSTRUCTOR + OBJECT + OBJECT + b"N\x87R.", id="reconstructor makes an object"),
        pytest.param(RECONSTRUCTOR + DOCUMENT + SET + b"N\x87R.", id="reconstructor with another base"),
        pytest.param(RECONSTRUCTOR + DOCUMENT + OBJECT + b"]\x87R.", id="reconstructor with a state"),
        pytest.param(RECONSTRUCTOR + DOCUMENT + OBJECT + b"\x86R.", id="reconstructor with two arguments"),
        pytest.param(SET + text("abc") + b"\x85R.", id="set of a string"),
        pytest.param(SET + DOCUMENT + b"\x85R.", id="set of a class"),
        pytest.param(SET + b")R.", id="set of nothing"),
        pytest.param(SET + b"]](]eea\x85R.", id="set of lists"),
        pytest.param(DOCUMENT + text("a") + b"\x85\x81.", id="Document with arguments"),
        pytest.param(DOCUMENT + text("a") + b"\x85R.", id="Document called with arguments"),
        pytest.param(EMPTY_DOCUMENT + b")R.", id="a document is called"),
        pytest.param(EMPTY_DOCUMENT + text("a") + b"a.", id="append to a document"),
        pytest.param(EMPTY_DOCUMENT + text("a") + b"Ns.", id="set an item of a document"),
        pytest.param(DOCUMENT + b"}b.", id="state for the class of the documents"),
        pytest.param(OBJECT + b"}" + text("x") + b"Nsb.", id="state for object"),
        pytest.param(b"]}" + text("x") + b"Nsb.", id="state for a list"),
    ],
)
def test_what_is_known_by_name_does_only_what_documents_need(data):
    assert "cannot be read as a pickle" in refused(b"\x80\x04" + data)


@pytest.mark.parametrize("target", [DOCUMENT, RECONSTRUCTOR, SET, OBJECT])
@pytest.mark.parametrize("slots", [False, True])
def test_state_for_a_class_or_a_helper_changes_nothing_for_the_next_file(target, slots):
    state = b"}" + text("__setstate__") + target + b"s" + text("__new__") + target + b"s"
    refused(b"\x80\x04" + target + (b"N" + state + b"\x86" if slots else state) + b"b.")
    for protocol in PROTOCOLS:
        assert load(pickled(pydantic_2_document, "langchain_core.documents.base", two, protocol)) == TWO


def test_a_state_with_dunder_names_is_only_data(canary):
    state = pickle.dumps({"__setstate__": 1, "__class__": 2, "__dict__": {"page_content": "a", "__reduce__": 3}}, 4)
    data = b"\x80\x04](" + EMPTY_DOCUMENT + state[2:-1] + b"be."
    assert load(data) == [{"page_content": "a", "fmt_content": "", "metadata": {}}]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"page_content": "a"}, "of type dict, expected a list of Documents"),
        ("text", "of type str, expected a list"),
        (None, "of type NoneType, expected a list"),
        ([{"page_content": "a"}, "b"], "item 1 is of type str"),
        ([{"page_content": "a"}, None], "item 1 is of type NoneType"),
        ([[{"page_content": "a"}]], "item 0 is of type list"),
        ([{"text": "a"}], "item 0: page_content is missing"),
        ([{"page_content": None}], "item 0: page_content is of type NoneType"),
        ([{"page_content": b"a"}], "item 0: page_content is of type bytes"),
        ([{"page_content": "a", "fmt_content": 0}], "item 0: fmt_content is of type int"),
        ([{"page_content": float("nan")}], "item 0: page_content is of type float"),
        ([{"page_content": "a", "metadata": []}], "item 0: metadata is of type list"),
        ([{"page_content": "a", "metadata": {"x": {1}}}], "item 0: metadata is not JSON"),
        ([{"page_content": "a", "metadata": {("x",): 1}}], "item 0: metadata is not JSON"),
    ],
)
def test_what_is_no_document_is_refused_with_its_place(content, found):
    assert found in refused(pickle.dumps(content, 4))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_none_and_the_nan_of_pandas_are_missing_values_as_in_jsonl(missing):
    content = [{"page_content": "a", "fmt_content": missing, "metadata": missing}]
    assert load(pickle.dumps(content)) == [{"page_content": "a", "fmt_content": "", "metadata": {}}]


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda document: document("a"), "of type _Document, expected a list"),
        (lambda document: [document("a"), document(5)], "item 1: page_content is of type int"),
        (lambda document: [document("a", metadata="b")], "item 0: metadata is of type str"),
        (lambda document: [document("a", metadata={"parent": document("b")})], "item 0: metadata is not JSON"),
        (lambda document: [document("a", metadata={"class": document})], "item 0: metadata is not JSON"),
        (lambda document: [document], "item 0 is of type type"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_document_with_a_wrong_field_is_refused_with_its_place(protocol, build, found):
    assert found in refused(pickled(dataclass_document, "local_rqa.schema.document", build, protocol))


@pytest.mark.parametrize("state", [b"", b"]b", b"Nb", b"K\x05b", b"}N\x86b", b"}" + text("__dict__") + b"Nsb"])
def test_a_document_without_fields_is_refused_with_its_place(state):
    assert "item 0 is a Document without fields" in refused(b"\x80\x04](" + EMPTY_DOCUMENT + state + b"e.")


def test_metadata_that_contains_itself_or_is_very_deep_is_refused():
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert "which is no document" in refused(pickle.dumps([{"page_content": "a", "metadata": loop}]))
    deep = b"]" * 100_000 + b"a" * 99_999
    data = b"\x80\x04](}" + text("page_content") + text("a") + b"s" + text("metadata") + b"}" + text("x")
    assert "not JSON" in refused(data + deep + b"sse.")


@pytest.mark.parametrize("data", [b"", b"N", b".", b'{"page_content": "a"}\n', b"\x1f\x8b\x08", b"PAR1", b"\x80\xff."])
def test_what_is_no_pickle_is_refused(data):
    assert "cannot be read as a pickle" in refused(data)


def test_documents_after_the_end_are_not_dropped_in_silence():
    one = pickle.dumps([{"page_content": "a"}])
    assert f"{len(one)} bytes after the end" in refused(one + one)


@pytest.mark.parametrize("index", [b"r\xff\xff\xff\xff", b"p99999999999\n"])
def test_a_memo_index_that_would_fill_the_memory_is_refused(index):
    assert "memo index" in refused(b"\x80\x02]" + index + b".")


def test_a_stream_that_cannot_be_read_is_the_users_input():
    class Damaged(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    with pytest.raises(InputError, match="docs.pkl: cannot be read as a pickle .EOFError: Compressed file ended"):
        load_documents(Damaged(), "docs.pkl")


SAMPLES = [
    pickled(make_class, module, two, protocol)
    for make_class, module in ((dataclass_document, "local_rqa.schema.document"), GENUINE[-1])
    for protocol in PROTOCOLS
]


def loads_or_is_refused(data: bytes) -> None:
    try:
        records = load(data)
    except InputError as error:
        assert str(error).isprintable()
    else:
        for record in records:
            assert set(record) == {"page_content", "fmt_content", "metadata"}
            assert type(record["page_content"]) is str and type(record["fmt_content"]) is str
            assert type(record["metadata"]) is dict
            json.dumps(record)


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_a_truncated_file_is_refused_at_every_length(sample):
    for length in range(len(SAMPLES[sample])):
        refused(SAMPLES[sample][:length])


@given(sample=st.sampled_from(SAMPLES), data=st.data())
@settings(max_examples=2000, deadline=None, database=None)
def test_changed_bytes_load_or_are_refused(sample, data):
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    loads_or_is_refused(bytes(changed))


def test_a_pickle_too_large_to_hold_is_refused_before_it_is_read_whole(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BYTES", 100)
    stream = io.BytesIO(SAMPLES[0])
    assert len(SAMPLES[0]) > 101
    with pytest.raises(InputError, match="^docs.pkl: the pickle has more than 100 bytes"):
        load_documents(stream, "docs.pkl")
    assert stream.tell() == 101


def test_a_small_pickle_that_names_its_parts_again_and_again_is_refused(monkeypatch):
    parts: list[Any] = ["laugh"]
    for _ in range(30):
        parts = [parts, parts]
    document = {"page_content": "a", "metadata": {"x": parts}}
    assert "item 0 has more than 67,108,864 bytes" in refused(pickle.dumps([document]))
    long = {"page_content": "x" * 600}
    monkeypatch.setattr(pickles, "MAX_BYTES", 2_000)
    assert "more than 2,000 characters, far more than the pickle" in refused(pickle.dumps([long] * 4))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None, database=None)
def test_random_bytes_load_or_are_refused(data):
    loads_or_is_refused(data)
    loads_or_is_refused(b"\x80\x04" + data + b".")


PIECES = [DOCUMENT, EMPTY_DOCUMENT, RECONSTRUCTOR, OBJECT, SET, text("page_content"), text("metadata"), b"K\x05"]
PIECES += [bytes([code]) for code in b"(NR)]}abdelsotu012\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x94"]
PIECES += [b"h\x00", b"h\x01", b"q\x00", b"q\x01"]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=500, deadline=None, database=None)
def test_any_program_over_the_known_names_loads_or_is_refused(pieces):
    loads_or_is_refused(b"\x80\x04" + b"".join(pieces) + b".")
    loads_or_is_refused(b"\x80\x04](" + b"".join(pieces) + b"e.")
    assert load(SAMPLES[0]) == TWO
