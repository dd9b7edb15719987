"""Input files in a data set of Hugging Face's hub, from a server on this machine that answers like the hub."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import pytest
from huggingface_hub import constants

from rqa_ray.data.files import byte_ranges, find_files
from rqa_ray.data.records import find_inputs, good_records, read_records
from rqa_ray.errors import InputError


def lines(*records: dict) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


FILES = {
    "README.md": b"# A data set",
    "pairs/train-1.jsonl": lines(*({"anchor": f"What is {n}?", "positive": f"It is {n}."} for n in range(4))),
    "pairs/train 2 [é].jsonl": lines({"query": "What boils?", "pos": ["Water."]}),
    "beir/corpus.jsonl": lines({"_id": "17", "title": "Water", "text": "It boils."}),
    "beir/queries.jsonl": lines({"_id": 1, "text": "What boils?"}),
    "beir/qrels/train.tsv": b"query-id\tcorpus-id\tscore\n1\t17\t2\n",
}
FOLDERS = ("pairs", "beir", "beir/qrels")
ROOT = "hf://datasets/me/set"


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub's client asks about the data set me/set, which has one revision, main."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        address = urlparse(self.path)
        path = unquote(address.path)
        entries = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in FILES.items()]
        entries += [{"type": "directory", "path": name, "size": 0, "oid": "1"} for name in FOLDERS]
        if not path.removeprefix("/api").startswith("/datasets/me/set"):
            self.reply(b"{}", 404, X_Error_Code="RepoNotFound")
        elif "/tree/main" in path:
            folder = path.partition("/tree/main")[2].strip("/")
            inner = [one for one in entries if not folder or one["path"].startswith(f"{folder}/")]
            if parse_qs(address.query)["recursive"] == ["false"]:
                inner = [one for one in inner if one["path"].rpartition("/")[0] == folder]
            if inner:
                self.reply(json.dumps(inner).encode())
            else:
                self.reply(b"{}", 404, X_Error_Code="EntryNotFound")
        elif "/paths-info/main" in path:
            self.reply(json.dumps([one for one in entries if one["path"] in parse_qs(asked)["paths"]]).encode())
        elif "/resolve/main/" in path:
            content = FILES[path.partition("/resolve/main/")[2]]
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.reply(content[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{len(content)}")
        else:
            self.reply(json.dumps({"id": "me/set", "sha": "0" * 40}).encode())

    do_POST = do_GET


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """Lets the hub's client talk to the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix("https://huggingface.co")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PAIRS = [f"{ROOT}/pairs/train 2 [é].jsonl", f"{ROOT}/pairs/train-1.jsonl"]


def test_files_globs_folders_and_revisions_of_a_data_set_are_found_and_read(hub) -> None:
    assert find_files([f"{ROOT}/pairs"], "train_file") == PAIRS
    assert find_files([f"{ROOT}/pairs/train-[12].jsonl"], "train_file") == PAIRS[1:]
    assert find_files([f"{ROOT}@main/pairs"], "train_file") == [path.replace("set/", "set@main/") for path in PAIRS]
    assert find_inputs({"train": ("train_file", PAIRS)}, skip_bad=False) == {"train": PAIRS}
    questions = [record.questions for record in good_records(PAIRS, "questions")]
    assert questions == [["What boils?"], *([f"What is {n}?"] for n in range(4))]


def test_ranges_of_a_large_file_have_all_its_records(hub) -> None:
    ranges = byte_ranges(PAIRS[1], 60)
    found = [record for start, end in ranges for _, record in read_records(PAIRS[1], "questions", start, end)]
    assert len(ranges) > 2 and found == [record for _, record in read_records(PAIRS[1], "questions")]


def test_a_beir_folder_of_a_data_set_stands_for_its_files(hub) -> None:
    given = {"train": ("train_file", [f"{ROOT}/beir"]), "corpus": ("document_path", [f"{ROOT}/beir"])}
    found = find_inputs(given, skip_bad=False)
    assert found == {"train": [f"{ROOT}/beir/qrels/train.tsv"], "corpus": [f"{ROOT}/beir/corpus.jsonl"]}
    [record] = good_records(found["train"], "questions")
    assert record.gold_docs == list(good_records(found["corpus"], "documents"))


@pytest.mark.parametrize("uri", [f"{ROOT}/pairs/none.jsonl", f"{ROOT}/pairs/*.parquet", "hf://datasets/me/none"])
def test_what_a_data_set_does_not_have_is_no_such_file(hub, uri) -> None:
    with pytest.raises(InputError) as caught:
        find_inputs({"train": ("train_file", [uri])}, skip_bad=False)
    assert str(caught.value) == f"--train_file {uri}: no such file"


def test_a_hub_that_cannot_be_reached_is_named_in_one_line(hub, monkeypatch) -> None:
    find_files(PAIRS, "train_file")
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client asks again and again
    unreachable = r"the hub cannot be reached: .*refused\)"
    with pytest.raises(InputError, match=f"jsonl: cannot be read .{unreachable}"):
        list(good_records(PAIRS, "questions"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{hub.server_port}")  # nothing is known about it
    with pytest.raises(
        InputError, match=f"^--train_file hf://datasets/me/set/a.jsonl: cannot be opened .{unreachable}"
    ):
        find_inputs({"train": ("train_file", [f"{ROOT}/a.jsonl"])}, skip_bad=False)
