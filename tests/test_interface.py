"""The examples of the Python interface run, and a notebook shows their results."""

import doctest
import inspect

import pytest

import rqa_ray
from rqa_ray import interface
from rqa_ray.errors import InputError

FUNCTIONS = ("train", "tune", "evaluate", "mine", "search")  # an example uses what those before it made


@pytest.fixture(scope="module")
def names(ray_cluster, tiny_model, files, tmp_path_factory) -> dict:
    """The names that the examples have defined, after all of them have run."""
    names = {"model": tiny_model, "files": files, "folder": tmp_path_factory.mktemp("interface")}
    for function in FUNCTIONS:
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(getattr(interface, function))):
            if example.want:
                assert f"{eval(example.source, names)!r}\n" == example.want
            else:
                exec(example.source, names)
    return names


def test_the_examples_leave_a_model_a_search_and_an_evaluation(names):
    assert names["result"].output_dir == str(names["folder"] / "run")
    assert (names["folder"] / "run" / "model.safetensors").exists()
    assert (names["folder"] / "search" / "trials.csv").exists()
    assert (names["folder"] / "evaluation" / "score.json").exists()


def test_a_notebook_shows_metrics_before_and_after_and_where_the_files_are(names):
    page = names["result"]._repr_html_()
    assert "<th>before</th><th>after, step" in page and "<td>eval recall@4</td>" in page and "<td>test nDCG@10" in page
    assert str(names["folder"] / "run") in page
    assert "<th>learning_rate</th>" in names["searched"]._repr_html_()
    assert "<td>dense</td>" in names["found"]._repr_html_() and str(names["folder"]) in names["found"]._repr_html_()
    assert "<td>negative</td>" in names["mined"]._repr_html_()
    assert "<th>alpha beta</th>" in names["answer"]._repr_html_()
    embedder = rqa_ray.Embedder.load(names["model"])
    embedder.notes.append("a note <b>")
    page = embedder._repr_html_()
    assert "<td>dimensions</td><td>32</td>" in page and "mean pooling, cosine similarity" in page
    assert page.endswith("<p>a note &lt;b&gt;</p>")


def test_a_wrong_argument_raises_the_line_that_a_job_prints():
    with pytest.raises(InputError, match="^temprature: unknown argument; did you mean temperature?"):
        rqa_ray.train(temprature=1, output_dir="out")
    with pytest.raises(InputError, match="^--question is missing"):
        rqa_ray.search(model="m", document_path="documents.jsonl")
    with pytest.raises(InputError, match="^--eval_data_path is missing"):
        rqa_ray.evaluate(model="m", document_path="d.jsonl", output_dir="out")


@pytest.mark.parametrize(("code", "raised"), [(1, RuntimeError), (130, KeyboardInterrupt), (143, KeyboardInterrupt)])
def test_nothing_ends_the_process(code, raised):
    with pytest.raises(raised), interface._no_exit():
        raise SystemExit(code)


def test_the_package_offers_the_embedder_and_the_jobs_and_nothing_else():
    assert set(rqa_ray.__all__) <= set(dir(rqa_ray)) and rqa_ray.Embedder.__name__ == "Embedder"
    assert not hasattr(rqa_ray, "retrain")
