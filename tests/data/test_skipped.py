"""Bad records that are left out are counted by kind, and the first are listed."""

import json

import numpy as np
import pytest

from rqa_ray.data.distinct import describe_clash
from rqa_ray.data.schema import Document
from rqa_ray.data.skipped import CLASHES, Skipped
from rqa_ray.errors import InputError


def test_the_kind_of_a_problem_is_what_is_said_behind_its_place():
    skipped = Skipped()
    for line in range(30):
        skipped.add(f"a.jsonl:{line}: not JSON (Expecting value), found {line}", "a.jsonl")
    skipped.add("a.jsonl:31: no `gold_docs`, found keys `x`", "a.jsonl")
    together = Skipped.of([skipped, skipped])
    assert (
        together.kinds == {"not JSON": 60, "no `gold_docs`": 2}
        and together.counts() == "not JSON 60, no `gold_docs` 2"
    )
    assert len(together.first) == 20 and together.first[1].startswith("a.jsonl:1: ")


def test_what_clashes_is_counted_where_bad_records_are_skipped(tmp_path):
    alpha = {"text": "alpha", "source": "a"}
    record = {"question": "?", "gold_docs": [alpha], "hard_neg_docs": [alpha | {"title": "T"}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    files, skipped = [str(tmp_path / "q.jsonl")], Skipped()
    clash = Document("alpha", "", {"source": "a"}).passage_id
    ids, hashes = np.array([clash, clash, 7]), np.array([1, 2, 3])
    with pytest.raises(InputError, match=r"q.jsonl:1: the same passage as in .*q.jsonl:1 .*, or pass --on_bad"):
        skipped.add_clashes(ids, hashes, files, "questions", skip_bad=False)
    skipped.add_clashes(ids, hashes, files, "questions", skip_bad=True)
    assert skipped.kinds == {CLASHES: 1} and skipped.first == [describe_clash(files, "questions", clash)]
