"""The folder of a model is found by the name that the user gives."""

from pathlib import Path

import pytest

from rqa_ray.errors import InputError
from rqa_ray.retriever.find_model import find_model_folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        find_model_folder(name)
    return str(caught.value)


def test_a_model_is_found_as_a_folder_or_as_a_package(tiny_model, minilm, monkeypatch):
    assert find_model_folder(tiny_model) == tiny_model
    monkeypatch.chdir(Path(tiny_model).parent)
    assert find_model_folder(Path(tiny_model).name) == tiny_model
    assert find_model_folder(f"./{Path(tiny_model).name}") == tiny_model
    assert Path(minilm).name == "model" and (Path(minilm) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["/no/such/model", "./missing", "../missing", "~/missing-model", "a/b/c"])
def test_a_path_that_is_missing_is_refused_without_asking_the_hub(name):
    assert refusal(name) == f"{name}: no such model folder"


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "no-such-model", "bad name!", "json"])
def test_a_name_that_the_hub_does_not_give_is_refused(name):
    assert "no such model folder, and the hub has no such model or cannot be reached" in refusal(name)
