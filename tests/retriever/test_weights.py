"""Broken weights of a model's folder are found without loading the model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import T5Config, T5EncoderModel

from rqa_ray.errors import InputError
from rqa_ray.retriever import weights
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec
from rqa_ray.retriever.weights import check_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"


@pytest.fixture
def bare(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, which a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "bare"))


@pytest.fixture
def with_head(bare) -> Path:
    """A model of sentence-transformers with a Dense module."""
    parts = [st.Transformer(str(bare)), st.Pooling(32), st.Dense(32, 24)]
    SentenceTransformer(modules=parts, device="cpu").save(str(bare.parent / "with-head"))
    return bare.parent / "with-head"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        check_weights(ModelSpec(str(folder), EncoderSettings()))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path: Path, **values: torch.Tensor | None) -> None:
    """Changes weights in a file; removes those that are None."""
    changed = load_file(path) | values
    save_file({name: value for name, value in changed.items() if value is not None}, path, {"format": "pt"})


@pytest.mark.parametrize("part", [".", "2_Dense"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: POINTER, "is a pointer of Git LFS, not the weights; run git lfs pull"),
        (lambda content: content[: len(content) // 2], "is cut short, or is no file of weights"),
        (lambda content: content[:5], "is cut short, or is no file of weights"),
        (lambda content: b"<html>" * 100, "is cut short, or is no file of weights"),
    ],
)
def test_a_file_of_weights_that_is_not_whole_is_refused(with_head, part, spoil, said):
    path = with_head / part / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert refusal(with_head).startswith(f"{path}: {said}")


def test_a_pickled_file_of_weights_that_is_not_whole_is_refused(bare):
    path = bare / "pytorch_model.bin"
    torch.save(load_file(bare / "model.safetensors"), path)
    (bare / "model.safetensors").unlink()
    check_weights(ModelSpec(str(bare), EncoderSettings()))
    path.write_bytes(path.read_bytes()[:5000])
    assert "pytorch_model.bin: is cut short" in refusal(bare)


@pytest.mark.parametrize("part", [".", "2_Dense"])
def test_a_module_without_its_file_of_weights_is_refused(with_head, part):
    (with_head / part / "model.safetensors").unlink()
    assert refusal(with_head) == f"{with_head / part}: has no model.safetensors; pass a folder that is complete"


def test_a_part_of_the_weights_that_the_index_lists_and_the_folder_lacks_is_refused(bare):
    content = load_file(bare / "model.safetensors")
    (bare / "model.safetensors").unlink()
    halves = {f"model-{part}.safetensors": dict(list(content.items())[part::2]) for part in (0, 1)}
    for name, half in halves.items():
        save_file(half, bare / name, {"format": "pt"})
    where = {key: name for name, half in halves.items() for key in half}
    (bare / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    check_weights(ModelSpec(str(bare), EncoderSettings()))
    (bare / "model-1.safetensors").unlink()
    assert "model-1.safetensors: model.safetensors.index.json lists this file; pass a folder that has it" in refusal(
        bare
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "weights are missing: encoder.layer.1"), (torch.ones(7), "weights have another shape: encoder.layer.1")],
)
def test_weights_that_do_not_fit_the_config_are_refused(bare, value, said):
    change(bare / "model.safetensors", **{"encoder.layer.1.output.dense.bias": value})
    assert said in refusal(bare)


@pytest.mark.parametrize(("part", "name"), [(".", "encoder.layer.1.output.dense.bias"), ("2_Dense", "linear.weight")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(with_head, part, name, value):
    path = with_head / part / "model.safetensors"
    spoiled = load_file(path)[name]
    spoiled.view(-1)[3] = value
    change(path, **{name: spoiled})
    assert refusal(with_head).endswith(f"the weights {name} are not finite; pass a folder that can be used")


def test_values_that_the_model_does_not_use_or_that_are_too_many_to_read_are_left_alone(bare, monkeypatch):
    change(bare / "model.safetensors", **{"cls.predictions.bias": torch.full((3,), float("nan"))})
    check_weights(ModelSpec(str(bare), EncoderSettings()))
    change(bare / "model.safetensors", **{"encoder.layer.1.output.dense.bias": torch.full((32,), float("nan"))})
    monkeypatch.setattr(weights, "LARGEST_READ", 1000)
    check_weights(ModelSpec(str(bare), EncoderSettings()))


def test_a_model_without_pooler_and_an_encoder_without_its_decoder_are_whole(bare, tmp_path):
    pooler = [name for name in load_file(bare / "model.safetensors") if name.startswith("pooler")]
    change(bare / "model.safetensors", **dict.fromkeys(pooler))
    check_weights(ModelSpec(str(bare), EncoderSettings()))
    config = T5Config(vocab_size=150, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    check_weights(ModelSpec(str(tmp_path / "t5"), EncoderSettings()))
