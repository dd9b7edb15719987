"""A BEIR folder is trained on and evaluated as it is, from its judgments, queries and passages."""

import gzip
import json
from pathlib import Path

import pytest

from rqa_ray.data import streaming
from rqa_ray.data.counts import Sample, estimate, record_bytes
from rqa_ray.data.records import find_inputs, good_records
from rqa_ray.data.schema import Document
from rqa_ray.errors import InputError

PASSAGES = [
    {"_id": "4f6c1a54-0d5f", "title": "Water", "text": "It boils."},
    {"_id": "17", "title": "", "text": "It freezes."},
    {"_id": "18", "title": "Ice", "text": "It melts."},
]
QUERIES = [{"_id": "q1", "text": "What boils?"}, {"_id": 2, "text": "What is cold?", "metadata": {}}]
TRAIN = [("q1", "4f6c1a54-0d5f", 1), ("2", "17", 2), ("2", "18", 1), ("q1", "18", 0)]
FLAGS = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "document_path"}


def beir_folder(folder: Path, compressed: bool = False, **judgments: list[tuple[str, str, object]]) -> Path:
    """Writes a folder in BEIR's layout; returns it."""
    (folder / "qrels").mkdir(parents=True)
    for name, objects in {"corpus": PASSAGES, "queries": QUERIES}.items():
        content = "".join(json.dumps(one) + "\n" for one in objects).encode()
        path = folder / f"{name}.jsonl{'.gz' * compressed}"
        path.write_bytes(gzip.compress(content) if compressed else content)
    for name, rows in judgments.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def questions_of(folder: Path, name: str = "train") -> list:
    return list(good_records([str(folder / "qrels" / f"{name}.tsv")], "questions"))


@pytest.mark.parametrize("compressed", [False, True])
def test_each_query_has_its_judged_passages_as_golds_and_those_of_grade_0_as_hard_negatives(tmp_path, compressed):
    first, second = questions_of(beir_folder(tmp_path, compressed, train=TRAIN))
    assert (first.questions, second.questions) == (["What boils?"], ["What is cold?"])
    passages = [Document(one["text"], "", {key: one[key] for key in ("_id", "title")}) for one in PASSAGES]
    assert (first.gold_docs, first.hard_neg_docs) == (passages[:1], passages[2:])
    assert (second.gold_docs, second.hard_neg_docs) == (passages[1:], [])
    assert (first.gold_grades, second.gold_grades) == (None, [2, 1])


def test_golds_are_the_passages_of_the_corpus(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    in_corpus = {one.passage_id for one in good_records([str(folder / "corpus.jsonl")], "documents")}
    assert {gold.passage_id for record in questions_of(folder) for gold in record.gold_docs} == in_corpus


def test_the_folder_alone_stands_for_the_file_of_each_input(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN, dev=TRAIN[:1], test=TRAIN[1:2])
    found = find_inputs({name: (flag, [str(folder)]) for name, flag in FLAGS.items()}, skip_bad=False)
    names = {"train": "qrels/train.tsv", "eval": "qrels/dev.tsv", "test": "qrels/test.tsv", "corpus": "corpus.jsonl"}
    assert found == {name: [str(folder / path)] for name, path in names.items()}


def test_judgments_that_a_folder_lacks_are_named_with_those_that_it_has(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN, test=TRAIN)
    with pytest.raises(InputError) as caught:
        find_inputs({"eval": ("eval_file", [str(folder)])}, skip_bad=False)
    has = "it has test.tsv, train.tsv, which --eval_file may name"
    has += "; training may hold out eval questions with --eval_share 0.1"
    assert str(caught.value) == f"--eval_file {folder}: a BEIR folder without qrels/dev.tsv; {has}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("q9", "17", 1), "2: no query with `_id` 'q9' in queries.jsonl"),
        (("q1", "99", 1), "2: no passage with `_id` '99' in corpus.jsonl"),
        (("q1", "17", "good"), "2: `score` has to be a number, found 'good'"),
        (("q1", "17", "nan"), "2: `score` has to be a number, found 'nan'"),
    ],
)
def test_a_judgment_that_fits_nothing_is_named_by_file_and_line(tmp_path, row, message):
    folder = beir_folder(tmp_path, train=[row])
    with pytest.raises(InputError) as caught:
        questions_of(folder)
    assert str(caught.value) == f"{folder}/qrels/train.tsv:{message}"


def test_a_query_without_a_score_above_0_is_left_out_and_said(tmp_path, capsys):
    folder = beir_folder(tmp_path, train=[("q1", "17", 0), ("2", "17", 1), ("q1", "unknown", -1)])
    files = find_inputs({"train": ("train_file", [str(folder)])}, skip_bad=False)
    what = "1 of 2 queries have no passage with a score above 0, and are left out"
    assert capsys.readouterr().out == f"note: {files['train'][0]}: {what}\n"
    assert [record.questions for record in questions_of(folder)] == [["What is cold?"]]


def test_judgments_without_a_score_above_0_are_refused(tmp_path):
    folder = beir_folder(tmp_path, test=[("q1", "17", 0), ("2", "17", 0)])
    with pytest.raises(InputError) as caught:
        find_inputs({"test": ("test_file", [str(folder)])}, skip_bad=False)
    assert str(caught.value) == f"{folder}/qrels/test.tsv: no passage of its 2 queries has a score above 0"


@pytest.mark.parametrize(
    ("name", "given", "wrong", "wanted"),
    [
        ("train", "*", "corpus.jsonl", "qrels/train.tsv"),
        ("eval", "queries.jsonl", "queries.jsonl", "qrels/dev.tsv"),
        ("corpus", "*", "qrels/train.tsv", "corpus.jsonl"),
        ("corpus", "queries.jsonl", "queries.jsonl", "corpus.jsonl"),
    ],
)
def test_a_glob_or_another_file_of_a_folder_is_refused_with_what_to_give(tmp_path, name, given, wrong, wanted):
    folder = beir_folder(tmp_path, train=TRAIN)
    with pytest.raises(InputError) as caught:
        find_inputs({name: (FLAGS[name], [f"{folder}/{given}"])}, skip_bad=False)
    what = f"another part of a BEIR folder; give the folder, {folder}, or its {wanted}"
    assert str(caught.value) == f"--{FLAGS[name]} {folder}/{wrong}: {what}"


def test_wrong_columns_and_missing_files_are_found_before_anything_is_read(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    path = folder / "qrels" / "train.tsv"
    path.write_text("qid\tdocid\tscore\nq1\t17\t1\n")
    with pytest.raises(InputError, match="train.tsv:1: no column `query-id`; the first line has to name the columns"):
        find_inputs({"train": ("train_file", [str(path)])}, skip_bad=False)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match="a BEIR folder without queries.jsonl"):
        find_inputs({"train": ("train_file", [str(path)])}, skip_bad=False)


def test_two_scores_of_one_passage_are_an_error_and_the_same_score_twice_is_none(tmp_path):
    row = TRAIN[0]
    assert len(questions_of(beir_folder(tmp_path / "same", train=[row, row]))) == 1
    folder = beir_folder(tmp_path / "other", train=[row, (*row[:2], 0)])
    with pytest.raises(InputError, match=r"train.tsv:2: passage '4f6c1a54-0d5f' has two scores for query 'q1'; .* 3$"):
        questions_of(folder)


def test_a_line_that_cannot_be_read_costs_only_the_queries_that_name_it(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    with (folder / "queries.jsonl").open("a") as file:
        file.write("no JSON\n")
    assert len(questions_of(folder)) == 2
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq3\t17\t1\n")
    with pytest.raises(InputError, match=r"no query with `_id` 'q3' in queries.jsonl; its line 3 cannot be read"):
        questions_of(folder)


def test_one_id_of_two_passages_is_an_error(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "17", "text": "Another."}) + "\n")
    with pytest.raises(InputError, match="`_id` '17' stands for two objects in"):
        questions_of(folder)


def test_compressed_judgments_are_found_and_read(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    path = folder / "qrels" / "train.tsv"
    (folder / "qrels" / "train.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    found = find_inputs({"train": ("train_file", [str(folder)])}, skip_bad=False)
    assert found == {"train": [f"{path}.gz"]} and len(list(good_records(found["train"], "questions"))) == 2


def test_the_number_of_rows_is_estimated_from_the_judgments(tmp_path):
    queries = [{"_id": f"q{number}", "text": "What boils?"} for number in range(300)]
    folder = beir_folder(tmp_path, train=[(query["_id"], "17", 1) for query in queries])
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    assert estimate([str(folder / "qrels" / "train.tsv")]).num_rows == 300


def test_a_query_without_a_text_is_named_with_its_id(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": None}) + "\n")
    with pytest.raises(InputError, match=r"train.tsv:2: the query with `_id` 'q1' has no `text`"):
        questions_of(folder)


def test_judgments_that_cannot_be_read_are_one_line(tmp_path):
    folder = beir_folder(tmp_path, train=TRAIN)
    path = folder / "qrels" / "train.tsv.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"train.tsv.gz: cannot be read"):
        find_inputs({"train": ("train_file", [str(path)])}, skip_bad=False)


def test_a_folder_named_qrels_alone_makes_no_beir_folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"text": "It boils."}) + "\n")
    table = tmp_path / "qrels" / "passages.tsv"
    table.write_text("text\ttitle\nIt boils.\tWater\n")
    assert find_inputs({"corpus": ("document_path", [str(table)])}, skip_bad=False) == {"corpus": [str(table)]}
    table.unlink()
    assert find_inputs({"corpus": ("document_path", [str(tmp_path)])}, skip_bad=False) == {"corpus": [str(documents)]}


def test_the_texts_that_judgments_name_count_as_the_size_of_a_streamed_part(tmp_path, monkeypatch):
    folder = beir_folder(tmp_path, train=TRAIN)
    path = str(folder / "qrels" / "train.tsv")
    size = int(record_bytes([path], Sample.of([path])))
    assert size > 100
    monkeypatch.setattr(streaming, "LARGEST_PART", size - 1)
    with pytest.raises(InputError, match="a BEIR folder of about .* has to be read in one piece"):
        list(streaming._parts(0, path, size, 1_000))
