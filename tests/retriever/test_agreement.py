"""Warnings and errors if embeddings differ from those of sentence-transformers."""

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import GPT2Config

from rqa_ray.errors import InputError
from rqa_ray.retriever import attention
from rqa_ray.retriever.agreement import check_against_sentence_transformers
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from tests.models import save_model, small_encoder, small_model


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "qwen3"])
def test_packed_models_embed_as_sentence_transformers_does(tmp_path, model_type):
    encoder = small_encoder(tmp_path, model_type)
    assert check_against_sentence_transformers(encoder) == []
    assert encoder.can_pack and encoder.training


@pytest.mark.parametrize("model_type", ["mpnet", "deberta-v2", "bert"])
def test_padded_models_do_too(tmp_path, model_type):
    encoder = small_encoder(tmp_path, model_type, is_decoder=model_type == "bert")
    assert check_against_sentence_transformers(encoder) == []
    assert not encoder.can_pack


def test_settings_of_prompts_and_dimensions_and_weights_in_bf16_agree(tiny_model):
    settings = EncoderSettings("weightedmean", max_seq_length=30, query_prefix="q: ", passage_prefix="passage: ")
    encoder = load_encoder(tiny_model, settings, bf16=True)
    assert check_against_sentence_transformers(encoder) == [] and encoder.can_pack


def test_a_dense_module_agrees_where_the_weights_are_in_bf16(tiny_model, tmp_path):
    transformer, pooling = st.Transformer(tiny_model, max_seq_length=30), st.Pooling(32, "mean")
    folder = str(tmp_path / "dense")
    SentenceTransformer(modules=[transformer, pooling, st.Dense(32, 24)], device="cpu").save(folder)
    encoder = load_encoder(folder, EncoderSettings(max_seq_length=30), bf16=True)
    assert check_against_sentence_transformers(encoder) == [] and encoder.can_pack


def test_where_packing_is_wrong_texts_are_padded_and_it_is_said(tiny_model, monkeypatch):
    encoder = load_encoder(tiny_model, EncoderSettings(max_seq_length=64))
    monkeypatch.setattr(attention, "attend", lambda query, key, value, *_: value)
    expected = "warning: texts are padded: unpadded, bert gives other embeddings than sentence-transformers"
    assert check_against_sentence_transformers(encoder) == [expected]
    assert not encoder.can_pack


@pytest.mark.parametrize("model_type", ["convbert", "fnet"])
def test_a_model_that_depends_on_the_other_texts_of_its_batch_is_named(tmp_path, model_type):
    (note,) = Embedder.load(small_model(tmp_path, model_type), "cpu").notes
    assert f"an embedding of this model ({model_type}) depends on the other texts in its batch" in note


def test_a_model_whose_inputs_are_not_all_made_here_is_refused(tmp_path):
    # This GPT-2 adds an embedding for the types of tokens, which its tokenizer gives; XLNet is another such model.
    config = GPT2Config(vocab_size=150, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    with pytest.raises(InputError, match=r"the model \(gpt2\) gives other embeddings here than in sentence-transfor"):
        Embedder.load(save_model(tmp_path, config), "cpu")


def test_a_model_that_cannot_embed_a_text_is_refused_in_a_line(tmp_path):
    with pytest.raises(InputError, match=r"the model \(nystromformer\) cannot embed a text: shape '.*' is invalid"):
        Embedder.load(small_model(tmp_path, "nystromformer", segment_means_seq_len=64, num_landmarks=8), "cpu")


def test_a_model_whose_finite_weights_overflow_is_refused(tiny_model):
    encoder = load_encoder(tiny_model, EncoderSettings(max_seq_length=64))
    encoder.transformer.embeddings.LayerNorm.weight.data.fill_(3e38)
    with pytest.raises(InputError, match="embeddings that are not finite, also in .* its weights are too large"):
        check_against_sentence_transformers(encoder)
