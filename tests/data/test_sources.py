"""Pairs and questions are counted by the names of --train_file, in the share that is trained on."""

import json

import numpy as np
import pytest

from rqa_ray.data.records import find_by_location
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.share import ALL, Share
from rqa_ray.data.sources import PairsBySource, SourceCount, Sources, check_sources, describe_sources
from rqa_ray.errors import InputError
from tests.builders import table
from tests.conftest import write_lines


def test_a_name_is_a_source_and_the_files_of_a_single_name_are_sources(tmp_path):
    (tmp_path / "nq").mkdir()
    files = [write_lines(tmp_path / name, []) for name in ("nq/1.jsonl", "nq/2.jsonl", "faq.jsonl")]
    given = [str(tmp_path / "nq"), files[2], files[0]]
    found = find_by_location({"train": ("train_file", given)})["train"]
    assert Sources.of(found) == Sources(tuple(given), (0, 0, 1)), "a file with two names has the first"
    assert Sources.of({given[0]: found[given[0]]}) == Sources(tuple(files[:2]), (0, 1))


def rows() -> list[dict]:
    """Two pairs of one question and one of another in each of 30 lines of file 0; 15 lines of file 1 with one pair."""
    pairs = [(line, item, question) for line in range(30) for item, question in enumerate((0, 0, 1))]
    found = [{"file": 0, "line": line, "item": item, "question_item": question} for line, item, question in pairs]
    found += [{"file": 1, "line": line} for line in range(15)]
    return [row | {"source_key": row["line"] // 3, "passage_id": place} for place, row in enumerate(found)]


def test_pairs_and_questions_are_counted_in_the_share_and_rows_know_their_source():
    made, sources = rows(), Sources(("a", "b"), (0, 1))
    tables = [table("train", made[40:]), table("train", made[:40])]
    found = PairsBySource.of(sources, tables)
    assert found.counts(ALL) == [SourceCount("a", 90, 60), SourceCount("b", 15, 15)]
    assert json.dumps([vars(count) for count in found.counts(ALL)])
    share = Share(0.5, 1)
    kept = [row for row in made if share.takes(np.array([row["source_key"]]))[0]]
    assert [count.pairs for count in found.counts(share)] == [sum(row["file"] == f for row in kept) for f in (0, 1)]
    assert sources.of_rows(tables, share).tolist() == [row["file"] for row in kept]
    assert len(TrainingRows.of_share(tables, share)) == len(kept)


def test_sources_that_cannot_fill_a_batch_and_single_sources_are_refused():
    found = PairsBySource.of(Sources(("a", "b"), (0, 1)), [table("train", rows())])
    check_sources(found.counts(ALL), 15)
    with pytest.raises(InputError, match="^--homogeneous_batches: b has 15 training pairs, fewer than a batch of 16;"):
        check_sources(found.counts(ALL), 16)
    with pytest.raises(InputError, match="^--homogeneous_batches: needs several training sources, and a is the only"):
        check_sources(PairsBySource.of(Sources(("a",), (0, 0)), [table("train", rows())]).counts(ALL), 2)


def test_the_largest_sources_are_said_first_and_one_source_is_not_said():
    counts = [SourceCount("a", 25, 1), SourceCount("b", 75, 1)]
    assert describe_sources(counts) == ["train sources: b 75 pairs (75%), a 25 pairs (25%)"]
    assert describe_sources(counts[:1]) == []
