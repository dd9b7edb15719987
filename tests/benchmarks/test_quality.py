"""The benchmark of quality, with a tiny model: what it trains, writes, leaves out and compares."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rqa_ray.benchmarks import quality, quality_runs
from rqa_ray.benchmarks.quality import QualityBenchmark
from rqa_ray.benchmarks.quality_data import read_data_set
from rqa_ray.benchmarks.quality_peers import train_peer
from rqa_ray.benchmarks.quality_report import QualityReport
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from tests.conftest import write_lines


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory) -> str:
    """A data set in the form that the benchmark reads."""
    place = tmp_path_factory.mktemp("set")
    for name, flag in {"train": "train_file", "eval": "eval_file", "test": "eval_file"}.items():
        place.joinpath(f"{name}.jsonl").write_bytes(Path(files[flag]).read_bytes())
    place.joinpath("documents.jsonl").write_bytes(Path(files["full_dataset_file_path"]).read_bytes())
    return str(place)


def settings(folder: str, model: str, output: Path, **more) -> QualityBenchmark:
    given = {"recipes": ["in-batch", "mined"], "seeds": [1, 2], "steps": 3, "batch_size": 4, "max_seq_length": 32}
    return QualityBenchmark(output=str(output), model_name_or_path=model, data=[folder], **(given | more))


@pytest.fixture(scope="module")
def measured(folder, tiny_model, tmp_path_factory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("quality") / "quality.json"
    return output, quality.run(settings(folder, tiny_model, output))


def test_each_contender_has_a_row_and_is_compared_with_the_plain_recipe(measured):
    rows = [line.split(" | ")[0].removeprefix("| ") for line in measured[1].splitlines()]
    for name in ("pretrained", "BM25", "pretrained and BM25", "mined", "mined, finish", "mined, finish and BM25"):
        assert rows.count(name) == 2  # one of the set, one of all sets
    assert rows.count("in-batch") == 1


def test_a_run_that_is_there_is_not_made_again(measured, folder, tiny_model, monkeypatch, capsys):
    output, table = measured
    monkeypatch.setattr(quality, "_trained", None)
    assert quality.run(settings(folder, tiny_model, output)) == table
    assert capsys.readouterr().err == ""


def test_a_run_without_the_finish_that_is_asked_for_is_missing(measured, folder, tiny_model, tmp_path):
    kept = json.loads(measured[0].read_text())
    for of_data in kept["data"].values():
        of_data["values"] = {name: runs for name, runs in of_data["values"].items() if ", finish" not in name}
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(kept))
    report = QualityReport.open(str(path), kept["settings"])
    for finish, lacks in ((False, False), (True, True)):
        names = quality.made("mined", settings(folder, tiny_model, path, finish=finish))
        assert any(not report.has(folder, name, 1) for name in names) is lacks
    assert quality.made("sentence-transformers, GIST", settings(folder, tiny_model, path)) == [
        "sentence-transformers, GIST"
    ]


def test_figures_of_other_settings_are_not_mixed(measured, folder, tiny_model):
    with pytest.raises(InputError, match="was measured with another --steps; name another file$"):
        quality.run(settings(folder, tiny_model, measured[0], steps=4))


def test_figures_of_other_files_are_not_mixed(measured):
    report = QualityReport.open(str(measured[0]), {})
    (name,) = report.data
    report.check_data(name, report.data[name]["digest"])
    with pytest.raises(InputError, match="was measured with other files of .*; name another file$"):
        report.check_data(name, "other")


def test_a_file_that_is_no_report_is_refused(tmp_path):
    path = tmp_path / "quality.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="is no report of this benchmark"):
        QualityReport.open(str(path), {})


def test_recipes_encode_the_same_number_of_texts(folder, tiny_model, monkeypatch):
    model = ModelSpec(tiny_model, read_settings(tiny_model, max_seq_length=32))
    setup = quality_runs.Setup(model, 4, 1e-4, 0.05, False)
    data = read_data_set(folder, model)
    base = quality_runs.rank_base(data, setup)
    texts = {
        name: quality_runs.train_own(data, setup, base, quality_runs.OWN[name], 48, 1, False).texts
        for name in ("in-batch", "mined", "mined, teacher", "mined again", "mined, no filter")
    }
    assert texts["in-batch"] == 48
    assert all(abs(number - 48) <= 6 for number in texts.values())  # half a batch


def test_a_smaller_cut_of_the_training_questions_is_in_the_larger(folder, tiny_model):
    model = ModelSpec(tiny_model, read_settings(tiny_model, max_seq_length=32))
    small, large = (read_data_set(f"{folder}:{size}", model).records for size in (4, 8))
    assert sum(len(record.questions) for record in small) >= 4
    assert all(record in large for record in small) and len(small) < len(large)


def test_the_seed_of_a_run_decides_what_the_miner_of_a_peer_draws(tiny_model):
    setup = quality_runs.Setup(ModelSpec(tiny_model, read_settings(tiny_model)), 4, 1e-4, 0.05, False)
    drawn: list[float] = []

    class Drawn(Exception):
        pass

    def prepare(*given) -> None:
        drawn.append(random.random())
        raise Drawn

    for seed in (1, 1, 2):
        with pytest.raises(Drawn):
            train_peer(None, setup, prepare, 48, seed)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", ["nowhere", "builtin:some"])
def test_a_set_that_is_not_there_is_said(name, tiny_model):
    with pytest.raises(InputError, match="^--data "):
        read_data_set(name, ModelSpec(tiny_model, read_settings(tiny_model)))


def test_a_recipe_without_its_negatives_is_left_out(tiny_model, tmp_path, capsys, monkeypatch):
    golds = [{"page_content": f"passage {number}", "metadata": {"source": number}} for number in range(12)]
    lines = [{"questions": [f"question {number}"], "gold_docs": [gold]} for number, gold in enumerate(golds)]
    for name in ("train", "eval", "test"):
        write_lines(tmp_path / f"{name}.jsonl", lines)
    write_lines(tmp_path / "documents.jsonl", golds)
    asked = settings(str(tmp_path), tiny_model, tmp_path / "q.json", recipes=["given negatives"], seeds=[1])
    quality.run(asked)
    assert "given negatives: left out, because the data have no hard_neg_docs" in capsys.readouterr().err
    values = json.loads((tmp_path / "q.json").read_text())["data"][str(tmp_path)]["values"]
    assert set(values) == {"pretrained", "BM25", "pretrained and BM25"}
    assert np.shape(values["pretrained"]["0"]["test"]["nDCG@10"]) == (12,)
    monkeypatch.setattr(quality, "rank_base", None)
    quality.run(asked)  # nothing is encoded again
