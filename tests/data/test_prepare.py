"""Preparing data gives the numbers of the survey, and Parquet with the contents of the files."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rqa_ray.command_line import parse
from rqa_ray.corpus_settings import PrepareSettings
from rqa_ray.data.records import read_records
from rqa_ray.data.report import full
from rqa_ray.data.rows import Corpus, TrainingRows
from rqa_ray.data.survey import Survey
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.training.inputs import input_files
from rqa_ray.training.job import parse_job

FAIRE = Path(__file__).parents[2].parent / "shared/data/faire"


@pytest.fixture(scope="module")
def spec(ray_cluster, tiny_model):
    return ModelSpec(str(tiny_model), read_settings(str(tiny_model), max_seq_length=32))


@pytest.fixture(scope="module")
def inputs(files) -> dict[str, list[str]]:
    names = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "full_dataset_file_path"}
    return {name: [files[flag]] for name, flag in names.items()}


@pytest.fixture(scope="module")
def prepared(ray_cluster, tiny_model, files, tmp_path_factory) -> tuple[Path, list[str]]:
    from rqa_ray.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "out"
    given = {"model": tiny_model, "max_seq_length": 64, "passage_prefix": "passage: ", "output_dir": folder}
    return folder, prepare(parse(PrepareSettings, {**files, **given})).lines


def test_the_share_that_is_cut_is_that_of_training_with_the_prefix(prepared, inputs, tiny_model) -> None:
    passages = [document.fmt_content for _, document in read_records(inputs["corpus"][0], "documents")]
    cut = {}
    for prefix in ("", "passage: "):
        settings = read_settings(tiny_model, max_seq_length=64, passage_prefix=prefix)
        tokenizer = TextTokenizer.load(ModelSpec(tiny_model, settings))
        tokenizer.passages(passages)
        cut[prefix] = tokenizer.num_truncated / tokenizer.num_texts
    assert 0 < cut[""] < cut["passage: "] < 1
    line = next(line for line in reversed(prepared[1]) if line.startswith("corpus "))
    assert line.endswith(f"{cut['passage: ']:.1%}")


def test_the_parquet_holds_the_records_of_the_files(prepared, inputs) -> None:
    folder, _ = prepared
    assert sorted(os.listdir(folder)) == ["corpus.parquet", "eval.parquet", "test.parquet", "train.parquet"]
    for name, [path] in inputs.items():
        kind = "documents" if name == "corpus" else "questions"
        expected = [record for _, record in read_records(path, kind)]
        assert [record for _, record in read_records(str(folder / f"{name}.parquet"), kind)] == expected
    row = pq.read_table(folder / "train.parquet").to_pylist()[0]
    record = next(read_records(inputs["train"][0], "questions"))[1]
    assert row["gold_passage_ids"] == [gold.passage_id for gold in record.gold_docs]
    assert row["hard_negative_ids"] == [negative.passage_id for negative in record.hard_neg_docs]


def test_the_parquet_keeps_instructions(tmp_path) -> None:
    from rqa_ray.data.prepare import write

    line = {"question": "one", "gold_docs": [{"page_content": "text"}]}
    lines = [line | {"instruction": "Find: "}, line]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write([str(path)], "questions", tmp_path / "train.parquet", skip_bad=False)
    for file in (path, tmp_path / "train.parquet"):
        records = [record for _, record in read_records(str(file), "questions")]
        assert [record.instruction for record in records] == ["Find: ", None]


def test_training_on_it_makes_the_global_batches_of_the_files(prepared, inputs, spec) -> None:
    from rqa_ray.data.batches import GlobalBatches
    from rqa_ray.data.readers import read_inputs

    words = "--model_name_or_path m --output_dir o --prepared_path".split()
    paths, _ = input_files(parse_job([*words, str(prepared[0])]))
    assert list(paths) == list(inputs)
    made = []
    for found in (inputs, paths):
        blocks = read_inputs(found, spec)
        batches = GlobalBatches(TrainingRows.from_tables(blocks["train"].tables()), 16, 0.25, seed=3, pad_id=0)
        made.append([batches.make(number) for number in range(5)])
        assert len(Corpus.from_tables(blocks["corpus"].tables())) == 60
    for one, other in zip(*made, strict=True):
        assert one.passage_ids.tolist() == other.passage_ids.tolist() and one.rows.tolist() == other.rows.tolist()
        for token_batch, same in zip(one.token_batches, other.token_batches, strict=True):
            assert token_batch.input_ids.tolist() == same.input_ids.tolist()


def test_scores_and_grades_are_kept(inputs, tmp_path) -> None:
    from rqa_ray.data.prepare import write

    record = json.loads(Path(inputs["train"][0]).read_text().splitlines()[0])
    (tmp_path / "train.jsonl").write_text(
        json.dumps(record | {"hard_neg_scores": [0.5, 2.0], "gold_scores": [None, None], "gold_grades": [2, 1]}) + "\n"
    )
    write([str(tmp_path / "train.jsonl")], "questions", tmp_path / "train.parquet", skip_bad=False)
    [(_, kept)] = read_records(str(tmp_path / "train.parquet"), "questions")
    assert kept.hard_neg_scores == [0.5, 2.0] and kept.gold_scores == [None, None]
    assert kept.gold_grades == [2, 1]


def test_a_bad_record_leaves_nothing_behind(spec, inputs, tmp_path) -> None:
    from rqa_ray.data.prepare import write_prepared

    (tmp_path / "train.jsonl").write_text(Path(inputs["train"][0]).read_text() + "oops\n")
    with pytest.raises(InputError, match=r"train.jsonl:25: not JSON"):
        write_prepared(inputs | {"train": [str(tmp_path / "train.jsonl")]}, tmp_path / "out", spec, skip_bad=False)
    assert os.listdir(tmp_path) == ["train.jsonl"]
    lines = write_prepared(
        inputs | {"train": [str(tmp_path / "train.jsonl")]}, tmp_path / "out", spec, skip_bad=True
    ).lines
    assert "bad records, left out: not JSON 1" in lines


def test_prepared_data_takes_the_place_of_files() -> None:
    words = "--model_name_or_path m --output_dir o --prepared_path p --eval_file e.jsonl".split()
    with pytest.raises(InputError, match="^--prepared_path has all data: leave out --eval_file, or --prepared_path$"):
        parse_job(words)


def test_the_survey_of_faire_has_its_known_numbers(spec) -> None:
    if not FAIRE.is_dir():
        pytest.skip("../shared/data/faire is not there")
    from rqa_ray.data.readers import read_inputs

    names = {"train": "train_w_q.jsonl", "eval": "eval_w_q.jsonl", "test": "test_w_q.jsonl", "corpus": "documents.pkl"}
    blocks = read_inputs({name: [str(FAIRE / file)] for name, file in names.items()}, spec)
    lines = full(Survey.of({name: part.tables() for name, part in blocks.items()}), 32)
    said = "\n".join(lines)
    assert "corpus: 1,757 passages, 1 duplicates left out" in said
    assert "note: questions with a gold that is also a gold of train: eval 4 (5%), test 4 (5%)" in said
    assert "gold that is also a hard negative of train: eval 19 (26%), test 34 (45%)" in said
    assert "  11% in batches of 64, 44% in batches of 256, " in said
