"""Texts and rows become embeddings, in several threads and in bf16."""

import pytest
import torch

from rqa_ray.retriever import embedder as embedder_module
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec
from rqa_ray.retriever.folder import load_encoder
from tests.retriever.test_token_batches import token_rows

ROWS = token_rows([5, 1, 60, 33, 7, 7, 12, 2, 20, 41, 3, 9, 15, 60, 50, 44])
OPTIONS = EmbedOptions(0, 70, packed=True)


@pytest.fixture
def encoder(tiny_model):
    return load_encoder(tiny_model, EncoderSettings()).eval()


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_embeddings_are_the_same_to_the_bit_for_any_number_of_threads(encoder, set_threads):
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        rows_done = []
        found.append(Embedder(encoder, OPTIONS).rows(ROWS, rows_done.append))
        assert sum(rows_done) == len(ROWS) and len(rows_done) > 5
        assert torch.get_num_threads() == threads
    assert found[0].std(0).mean() > 0.01
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_a_thread_raises_is_raised_and_no_further_token_batch_is_begun(encoder, set_threads):
    set_threads(2)
    begun = []

    def forward(*args, **kwargs):
        begun.append(args)
        raise ZeroDivisionError

    encoder.transformer.forward = forward
    with pytest.raises(ZeroDivisionError):
        Embedder(encoder, EmbedOptions(0, 1)).rows(ROWS)  # a token batch a text
    assert len(begun) <= 4 < len(ROWS)
    assert torch.get_num_threads() == 2


def test_texts_that_are_tokenized_ahead_have_the_same_embeddings_in_order(encoder, monkeypatch):
    texts = ["b" * length for length in (3, 40, 1, 17, 22, 9, 30, 2)]
    embedder, rows_done = Embedder(encoder, OPTIONS), []
    expected = embedder.passages(texts)
    for at_a_time in (3, 4, 8, 100):  # the last part is smaller, or as large as the others
        monkeypatch.setitem(embedder_module.TEXTS_AT_A_TIME, "cpu", at_a_time)
        torch.testing.assert_close(embedder.passages(texts, rows_done.append), expected, rtol=0, atol=1e-5)
    assert sum(rows_done) == 4 * len(texts)
    assert embedder.passages([]).shape == (0, 32)


def test_weights_in_bf16_change_embeddings_a_little(encoder, tiny_model):
    halves = load_encoder(tiny_model, EncoderSettings(), bf16=True).eval()
    assert {value.dtype for value in halves.parameters()} == {torch.bfloat16}
    exact, found = (Embedder(one, OPTIONS).rows(ROWS) for one in (encoder, halves))
    assert found.dtype == torch.float32
    assert 1e-5 < (found - exact).norm(dim=1).max() < 0.05


def test_texts_become_embeddings_with_the_prefixes_of_a_model(tiny_model, tmp_path):
    embedder = Embedder.load(tiny_model, "cpu")
    (alone,) = embedder.passages(["a text"])
    found = embedder.passages(["a longer text than that", "a text"])
    assert found.dtype == torch.float32 and found.shape == (2, 32) and embedder.notes == []
    torch.testing.assert_close(found[1], alone, rtol=0, atol=1e-6)
    settings = EncoderSettings(max_seq_length=64, query_prefix="a ")
    prefixed = Embedder.load(ModelSpec(tiny_model, settings), "cpu")
    torch.testing.assert_close(prefixed.questions(["text"])[0], alone, rtol=0, atol=1e-6)
    assert prefixed.questions([]).shape == (0, 32)
