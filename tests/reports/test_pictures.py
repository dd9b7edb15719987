"""The pictures of the documents show what the files of a run and of a search say."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import rqa_ray
from rqa_ray.corpus_settings import PicturesSettings
from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import LABELS
from rqa_ray.places import write_json
from rqa_ray.reports.pictures import pictures, record_picture
from rqa_ray.reports.trials import FINISHED, STOPPED, Trial, write_trials

ROOT = Path(rqa_ray.__file__).parents[1]
RECALL = "eval_retr/document_recall/recall4"


@pytest.fixture
def run(tmp_path) -> Path:
    """The files of a run that raised all metrics from 0.5 to 0.75."""
    folder = tmp_path / "run"
    folder.mkdir()
    names = [f"test_{name}" for name in LABELS.values()]
    write_json(folder / "all_args.json", {"model_name_or_path": "some/model"})
    write_json(folder / "trainer_state.json", {"log_history": [{"step": 0} | dict.fromkeys(names, 0.5)]})
    intervals = {"intervals_95": dict.fromkeys(names, [0.7, 0.8])}
    write_json(folder / "test_results.json", {"step": 25} | dict.fromkeys(names, 0.75) | intervals)
    return folder


@pytest.fixture
def search(tmp_path) -> Path:
    """Three trials, of which the one with the best value did not finish."""
    folder = tmp_path / "search"
    folder.mkdir()
    found = [(1e-5, 16, FINISHED, 0.6), (1.1e-5, 16, FINISHED, 0.7), (1e-3, 64, STOPPED, 0.9)]
    trials = [
        Trial(number, "a", {"learning_rate": rate, "global_batch_size": batch}, state, 320, [(320, value)], 20)
        for number, (rate, batch, state, value) in enumerate(found, start=1)
    ]
    write_trials(folder, trials, ["learning_rate", "global_batch_size"], RECALL)
    return folder


def draw(folder: Path, **inputs: Path) -> dict[str, str]:
    """The pictures by name."""
    given = {name: str(path) for name, path in inputs.items()}
    result = pictures(PicturesSettings(output_dir=str(folder), **given))
    return {Path(file).stem: Path(file).read_text() for file in result.files}


def texts(picture: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_recall_before_and_after_has_its_numbers_and_intervals(run, tmp_path):
    shown = texts(draw(tmp_path / "out", run=run)["recall"])
    assert "before: model" in shown and "after 25 steps, with 95% interval" in shown
    assert shown.count("0.500 → 0.750") == shown.count("(0.70 to 0.80)") == 5


def test_the_map_of_a_search_has_every_trial_and_rings_the_best_that_finished(search, tmp_path):
    picture = draw(tmp_path / "out", search=search)["search"]
    assert {"3 trials: recall@4 of the eval questions", "0.600", "0.700", "0.900", "stopped early"} <= {
        *texts(picture)
    }
    assert re.search(r'class="ink middle bold">0.700<', picture)
    heights = {float(y) for y in re.findall(r'y="([\d.]+)" class="[a-z ]*">0\.[67]00<', picture)[-2:]}
    assert len(heights) == 2, "numbers of neighbors stand above and below"


def test_every_file_that_the_way_of_a_record_names_is_there():
    named = {text for text in texts(record_picture().decode()) if text.endswith(".py")}
    assert len(named) >= 10 and named <= {path.name for path in (ROOT / "rqa_ray").rglob("*.py")}


@pytest.mark.parametrize("flag", ["run", "search"])
def test_a_folder_of_something_else_is_refused_in_one_line_and_nothing_is_written(flag, tmp_path):
    with pytest.raises(InputError, match=rf"^--{flag} {tmp_path}: [^\n]*$"):
        draw(tmp_path / "out", **{flag: tmp_path})
    assert not (tmp_path / "out").exists()


def test_a_search_of_other_arguments_has_no_map(tmp_path):
    trial = Trial(1, "a", {"temperature": 0.1}, FINISHED, 320, [(320, 0.5)], 20)
    write_trials(tmp_path, [trial], ["temperature"], RECALL)
    with pytest.raises(InputError, match="a map needs trials with learning_rate and global_batch_size, found trial, "):
        draw(tmp_path / "out", search=tmp_path)


def test_the_pictures_of_the_checkout_are_small_whole_and_the_way_of_a_record_is_the_present_one():
    files = {path.stem: path.read_bytes() for path in (ROOT / "jobs" / "pictures").iterdir()}
    assert set(files) == {"recall", "record", "search"}
    for content in files.values():
        assert len(content) < 40_000 and ElementTree.fromstring(content) is not None
    assert files["record"] == record_picture()
