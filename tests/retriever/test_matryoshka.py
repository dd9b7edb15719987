"""Embeddings are cut as sentence-transformers cuts them; dimensions that a model does not have are refused."""

import pytest
import torch
from sentence_transformers.util import truncate_embeddings

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec, read_settings
from rqa_ray.retriever.matryoshka import check_dimensions, cut, trained_dimensions
from tests.models import small_model
from tests.training.invariance import random_bert


def test_cut_embeddings_are_those_of_sentence_transformers_and_have_unit_length_for_cosine():
    embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    first = truncate_embeddings(embeddings, 3)
    assert torch.equal(cut(embeddings, 3, "dot"), first)
    torch.testing.assert_close(cut(embeddings, 3, "cosine"), first / first.norm(dim=1, keepdim=True))
    assert cut(embeddings, 8, "cosine") is embeddings


def test_the_dimensions_of_training_are_known_from_the_folder_of_the_model(tmp_path):
    assert trained_dimensions(str(tmp_path)) == []
    for content, found in (('{"matryoshka_dims": [16, 8]}', [16, 8]), ('{"max_steps": 9}', []), ("[]", [])):
        (tmp_path / "all_args.json").write_text(content)
        assert trained_dimensions(str(tmp_path)) == found


@pytest.mark.parametrize(
    ("settings", "own"),
    [({}, 32), ({"pooling": "mean+max"}, 64), ({"truncate_dim": 24}, 24), ({"dense": True}, 16)],
    ids=str,
)
def test_more_dimensions_than_a_model_has_are_refused_in_one_line(settings, own, tmp_path):
    dense = settings.pop("dense", False)
    folder = random_bert(str(tmp_path), dense=True) if dense else small_model(tmp_path / "model", "distilbert")
    spec = ModelSpec(folder, read_settings(folder) if dense else EncoderSettings(**settings))
    check_dimensions(spec, [4, own])
    check_dimensions(spec, [])
    said = f"^--matryoshka_dims {own + 1}: the model's embeddings have {own} dimensions$"
    with pytest.raises(InputError, match=said):
        check_dimensions(spec, [4, own + 1])
