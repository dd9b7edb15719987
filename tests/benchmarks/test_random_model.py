"""Models with random weights that a measurement of speed names by type and size."""

import pytest

from rqa_ray.benchmarks import random_model
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder

pytestmark = pytest.mark.usefixtures("minilm")  # its tokenizer


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "qwen3"])
def test_a_type_with_a_size_is_a_model_with_random_weights(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(random_model.SIZES, "tiny", (2, 64))
    encoder = load_encoder(random_model.resolve(f"{kind}:tiny", str(tmp_path)), EncoderSettings())
    assert encoder.dimensions == 64 and encoder.can_pack
    assert encoder.transformer.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bertt:small", "transformers has no model type bertt"),
        ("bert:tiny", "the size has to be one of small, base, large"),
    ],
)
def test_a_type_or_size_that_does_not_exist_is_said(name, problem, tmp_path):
    with pytest.raises(InputError, match=f"^--model_name_or_path {name}: {problem}$"):
        random_model.resolve(name, str(tmp_path))


def test_other_names_are_those_of_models(tiny_model, tmp_path):
    assert random_model.resolve(tiny_model, str(tmp_path)) == tiny_model
