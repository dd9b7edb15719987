"""The suspects of a run are written for a person, with the texts of their questions, golds and rivals."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import fs

from rqa_ray.data.labels import NO_LABELS
from rqa_ray.data.schema import question_key
from rqa_ray.reports.suspects_page import SuspectsPart
from rqa_ray.training import run_suspects
from rqa_ray.training.rounds import NEGATIVES_FILE, SUSPECT
from tests.builders import documents
from tests.conftest import write_lines


@pytest.fixture
def checkpoint(tmp_path) -> SimpleNamespace:
    """A checkpoint without mined negatives."""
    (tmp_path / "checkpoint").mkdir()
    return SimpleNamespace(path=str(tmp_path / "checkpoint"), filesystem=fs.LocalFileSystem())


def write(tmp_path, checkpoint, train: str, location: str = "run") -> list[str]:
    (tmp_path / "out").mkdir(exist_ok=True)
    return run_suspects.write_run_suspects(tmp_path / "out", location, checkpoint, [train], NO_LABELS, documents())


def test_a_person_finds_the_suspects_of_the_last_round_with_all_golds_and_the_page(tmp_path, checkpoint, monkeypatch):
    rival = int(documents().passage_ids[2])
    rows = [(question_key("What boils?"), rival, 0.75, 0.5, 1, 0)]
    np.savez(f"{checkpoint.path}/{NEGATIVES_FILE}", suspects=np.array(rows, SUSPECT))
    lines = [{"question": name, "gold_docs": [{"text": gold}]} for name in ("What boils?", "Who?") for gold in "ab"]
    train = write_lines(tmp_path / "train.jsonl", lines)
    of_files = [(train, 0, None)]
    monkeypatch.setattr(
        run_suspects, "read_asked", lambda files, labels, keys: run_suspects.asked_in(of_files, labels, keys)
    )
    said = write(tmp_path, checkpoint, train)
    assert said == ["suspects: 1 passages that mining left out may be answers: run/suspects.html"]
    line = json.loads((tmp_path / "out" / "suspects.jsonl").read_text())
    assert [gold["page_content"] for gold in line["gold_docs"]] == ["a", "b"] and line["question"] == "What boils?"
    assert (line["score"], line["gold_score"], line["dense_rank"], line["bm25_rank"]) == (0.75, 0.5, 1, None)
    assert line["rival"]["page_content"] == documents().document(2)["page_content"] and line["accept"] is None
    assert SuspectsPart.of(tmp_path / "out", "suspects.html").link == "suspects.html"
    for location, name in (("run", "run"), ("s3://KEY:SECRET@b/run?secret_key=X", "run"), (".", Path.cwd().name)):
        write(tmp_path, checkpoint, train, location)
        assert f"<title>Suspects of {name}</title>" in (tmp_path / "out" / "suspects.html").read_text()


def test_without_suspects_nothing_is_written_and_what_goes_wrong_costs_no_run(tmp_path, checkpoint):
    assert write(tmp_path, checkpoint, "none") == [] and not list((tmp_path / "out").iterdir())
    (tmp_path / "out").rmdir()
    (tmp_path / "checkpoint" / NEGATIVES_FILE).write_bytes(b"no array")
    (said,) = write(tmp_path, checkpoint, "none")
    assert said.startswith("warning: no suspects.jsonl: ") and not list((tmp_path / "out").iterdir())
