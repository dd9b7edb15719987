"""The credentials in a URI are in nothing that is printed or written, and a resumed run still finds its storage."""

import pickle
import traceback
from io import StringIO

import pytest

from rqa_ray.credentials import MaskedStream, is_masked, masked, masked_values, unmasked
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import read_json, shown, write_json
from rqa_ray.texts import command
from tests.jobs import run

PLANTED = ("AKPLANTED", "s3cr3t/PLANTED+", "t0kenPLANTED")
# Of no file system, and pyarrow's message quotes the URI.
NOWHERE = "foo://{}:{}@bucket/x.jsonl?secret_key={}".format(*PLANTED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://KEY:SECRET@bucket/a?region=x", "s3://***@bucket/a?region=x"),
        ("--train_file s3://K:SE/C+RET/=@b/x@y.jsonl:3: bad", "--train_file s3://***@b/x@y.jsonl:3: bad"),
        ("'s3://K:p@ss@b' and \"https://TOKEN@host/x\"", "'s3://***@b' and \"https://***@host/x\""),
        ("s3://b/x?access_key=A&secret_key=B&scheme=http", "s3://b/x?access_key=***&secret_key=***&scheme=http"),
        (
            "https://b/x?X-Amz-Signature=A&X-Amz-Expires=3&sig=B",
            "https://b/x?X-Amz-Signature=***&X-Amz-Expires=3&sig=***",
        ),
        ("https://h/x?token=A (s3://b?sig=A.b:3: bad), b", "https://h/x?token=*** (s3://b?sig=***: bad), b"),
        ("hf://TOKEN@datasets/o/n and hf_" + "a" * 34, "hf://***@datasets/o/n and ***"),
        ("python jobs/train.py --hub_token abc --x", "python jobs/train.py --hub_token *** --x"),
        ("abfss://:PASSWORD@account/x", "abfss://***@account/x"),
    ],
)
def test_credentials_are_masked_wherever_a_uri_has_them(text, expected):
    assert masked(text) == masked(expected) == expected
    assert masked_values({"a": [text, 1, None], "b": {"c": text}}) == {"a": [expected, 1, None], "b": {"c": expected}}


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b?endpoint_override=127.0.0.1:9000&scheme=http",
        "hf://datasets/owner/name@main/x.jsonl",
        "abfs://container@account.dfs.core.windows.net/x?blob_storage_authority=a",
        "gs://anonymous@bucket/x",
        "http://host:8080/a@b",
        "https://host/page?id=3&monkeyword=x: mail me@host",
        "user:password@host is no URI",
    ],
)
def test_what_is_no_credential_stays(text):
    assert masked(text) == text and not is_masked(text)


def test_a_stored_uri_gets_its_credentials_from_a_uri_of_the_same_storage_alone():
    uri = "s3://K:S/T@b/runs/1?region=r&secret_key=V"
    stored = masked(uri)
    assert is_masked(stored)
    assert unmasked(stored, ["/local", "s3://b/x", "s3://K:S@c/x?region=r&secret_key=V", stored]) == stored
    assert unmasked(stored, ["s3://K:S/T@b?region=r&secret_key=V"]) == uri
    assert unmasked("/local", [uri]) == "/local"


def test_errors_places_commands_and_json_files_have_no_credentials(tmp_path):
    error = InputError(f"--train_file {NOWHERE}: no such file")
    assert str(error) == str(pickle.loads(pickle.dumps(error)))
    texts = [str(error), first_line(OSError(f"{NOWHERE} is away")), shown(NOWHERE), command("x", NOWHERE)]
    write_json(tmp_path / "a.json", {"train_file": [NOWHERE]})
    assert read_json(tmp_path / "a.json") == {"train_file": [masked(NOWHERE)]}
    assert shown(NOWHERE) == "foo://***@bucket/x.jsonl"
    assert not [secret for secret in PLANTED for text in texts if secret in text]


def test_what_a_library_prints_or_logs_is_masked_too():
    stream = StringIO()
    masking = MaskedStream(stream)
    print("a", NOWHERE, file=masking)
    masking.writelines([NOWHERE])
    assert stream.getvalue() == f"a {masked(NOWHERE)}\n{masked(NOWHERE)}"
    assert not masking.isatty()  # all else is the stream's own


TRAINING = ("train_file", "eval_file", "full_dataset_file_path", "model", "output_dir")
MEASURING = ("document_path", "eval_data_path", "model", "output_dir")
# By job: the flags that it needs, and others that name places.
JOBS = {
    "train": (TRAINING, ("test_file", "accepted_labels", "resume_from_checkpoint")),
    "tune": (TRAINING, ()),
    "preflight": (TRAINING, ()),
    "prepare": (TRAINING, ("test_file",)),
    "mine": (TRAINING, ("test_file", "embeddings_path", "teacher")),
    "evaluate": (MEASURING, ("weight_data_path", "accepted_labels", "embeddings_path")),
    "export": (MEASURING, ()),
    "embed": (("document_path", "model", "output_dir"), ()),
    "search": (("document_path", "model"), ("embeddings_path",)),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_command_that_fails_names_no_credentials(job, files, tiny_model, tmp_path, capsys):
    known = {**files, "document_path": files["full_dataset_file_path"], "eval_data_path": files["test_file"]}
    known |= {"model": tiny_model, "output_dir": str(tmp_path / "out")}
    needed, others = JOBS[job]
    more = {"tune": ["--tune_learning_rate", "1e-5"], "search": ["--question", "alpha"]}.get(job, [])
    for flag in (*needed, *others):
        given = {name: known[name] for name in needed} | {flag: NOWHERE}
        with pytest.raises(SystemExit) as stop:
            run(job, *(word for name, value in given.items() for word in (f"--{name}", value)), *more)
        said = "".join(capsys.readouterr())
        assert stop.value.code == 2 and "***" in said, (flag, said)
        assert not [secret for secret in PLANTED if secret in said], (flag, said)
    assert not (tmp_path / "out").exists()


def test_a_command_that_works_prints_and_writes_no_credentials(files, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rqa_ray.export.export.chosen_runtimes", lambda names: ([], []))
    uri = f"file://{files['full_dataset_file_path']}?secret_key={PLANTED[0]}"
    asked = f"file://{files['test_file']}?token={PLANTED[2]}"
    run("search", "--model", tiny_model, "--document_path", uri, "--question", "alpha beta", "--top_k", "2")
    words = ["--model", tiny_model, "--document_path", uri, "--eval_data_path", asked]
    run("export", *words, "--output_dir", tmp_path / "out")
    assert "".join(capsys.readouterr()).count("written: ") == 1
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5 and not [secret for secret in PLANTED for content in written if secret.encode() in content]


def test_what_a_worker_raises_has_no_credentials_when_ray_logs_it():
    from rqa_ray.training.driver import _run_loop

    def loop(storage: str) -> None:
        try:
            raise FileNotFoundError(2, "is away", storage)
        except OSError as error:
            raise RuntimeError(f"{storage}/run: cannot be written") from error

    spec = "s3://KEY:SECRET@bucket"
    with pytest.raises(RuntimeError) as raised:
        _run_loop({"loop": loop, "spec": spec})
    logged = "".join(traceback.format_exception(raised.value))
    assert "SECRET" not in logged and logged.count("s3://***@bucket") == 2
