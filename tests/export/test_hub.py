"""An upload sends every file of a folder; a stand-in answers as the interface of the hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.export.hub import Upload

TOKEN = "hf_of_a_test"


class StandIn(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload uses; `server.files` are those of the one repository."""

    def log_message(self, *values: object) -> None:
        pass

    def answer(self, value: dict, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        answers = {"/api/whoami-v2": {"name": "somebody", "type": "user"}}
        path = self.path.partition("?")[0]
        if not known:
            self.answer({"error": "Invalid username or password."}, 401)
        else:
            self.answer(answers.get(path, {"id": "somebody/model", "sha": "0" * 40, "siblings": []}))

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            name = f"{self.server.created.get('organization') or 'somebody'}/{self.server.created['name']}"
            self.answer({"url": f"https://huggingface.co/{name}", "id": name})
        elif "/refused/" in self.path:
            self.answer({"error": "no room"}, 413)
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": "https://huggingface.co/somebody/model/commit/0", "commitOid": "0" * 40})
        else:
            self.answer({"warnings": [], "errors": []})  # validate-yaml


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, to which huggingface_hub goes with a token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_what_was_sent_gives_the_same_model_again(hub, tiny_model, tmp_path, capfd):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(tiny_model).save(str(tmp_path / "model"))
    address = Upload("somebody/model").push(tmp_path / "model")
    assert address.endswith("/somebody/model") and hub.created["visibility"] == "private"
    for name, content in hub.files.items():
        path = tmp_path / "back" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sent, back = (SentenceTransformer(str(tmp_path / name)).encode(["a b", "c"]) for name in ("model", "back"))
    assert (sent == back).all()
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_wrong_token_is_one_line_before_any_work(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError) as error:
        Upload("somebody/model")
    said = str(error.value)
    assert said.startswith("--push_to_hub somebody/model: ") and "\n" not in said and "hf_wrong" not in said


def test_a_name_that_is_none_is_refused(hub):
    with pytest.raises(InputError, match="--push_to_hub a/b/c: Repo id must"):
        Upload("a/b/c")


def test_an_upload_that_fails_says_where_the_files_are(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InputError, match=f"--push_to_hub somebody/refused: .*; the files are in {tmp_path}: hf upload "
    ):
        Upload("somebody/refused").push(tmp_path)


def test_a_name_without_a_user_is_a_repository_of_the_user_whose_token_it_is(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Upload("model").push(tmp_path).endswith("/somebody/model")
    assert hub.files == {"config.json": b"{}"}


def test_a_folder_is_sent_with_its_sub_folders_and_a_card_that_loads_the_model_from_the_hub(hub, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"\x00\x01")
    about = "---\nmodel-index:\n- name: out\n  results:\n  - task:\n      type: a\n    dataset: {name: a, type: a}\n"
    about += "    metrics:\n    - {type: a, value: 1}\n---\n"
    (tmp_path / "README.md").write_text(about + 'SentenceTransformer("out", truncate_dim=8) and "out"\n')
    Upload("model").push(Path(tmp_path))
    assert hub.files["onnx/model.onnx"] == b"\x00\x01"
    card = about + 'SentenceTransformer("somebody/model", truncate_dim=8) and "out"\n'
    assert hub.files["README.md"].decode() == card
