"""The encoder compared with computations by hand on its token vectors, for padded and packed token batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rqa_ray.retriever import attention
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import POOLING_FLAGS, EncoderSettings
from rqa_ray.retriever.folder import load_encoder, save_encoder
from rqa_ray.retriever.token_batches import length_sorted_batches

PAD = 0
LAYOUTS = [pytest.param(False, id="padded"), pytest.param(True, id="packed")]


def token_rows(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 140, length).astype(np.int32) for length in lengths]


def load(folder: str, dropout: float | None = None, **settings) -> Encoder:
    return load_encoder(folder, EncoderSettings(**settings), dropout)


def embed(encoder: Encoder, rows: list[np.ndarray], max_tokens: int, packed: bool = False, **options) -> torch.Tensor:
    token_batches, order = length_sorted_batches(rows, max_tokens, PAD, packed)
    return encoder(token_batches, **options)[order]


def embedding_gradients(encoder: Encoder, rows: list[np.ndarray], packed: bool = False) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    token_batches, order = length_sorted_batches(rows, 60, PAD, packed)
    embeddings = encoder(token_batches, range(len(token_batches)))[order]
    (embeddings * torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)).sum().backward()
    return {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("pooling", POOLING_FLAGS)
def test_pooling_uses_the_tokens_of_the_text_and_no_padding(tiny_model, pooling, similarity, packed):
    encoder = load(tiny_model, pooling=pooling, similarity=similarity, normalize=similarity == "cosine").eval()
    rows = token_rows([3, 9, 1, 17])
    with torch.no_grad():
        found = embed(encoder, rows, 1000, packed)  # one token batch, padded to 17
        for row, embedding in zip(rows, found, strict=True):
            alone = encoder.transformer(torch.from_numpy(row).long()[None]).last_hidden_state[0].numpy()
            weights = np.arange(1, len(alone) + 1)
            by_hand = {
                "mean": alone.mean(0),
                "mean_sqrt_len_tokens": alone.sum(0) / np.sqrt(len(alone)),
                "weightedmean": weights @ alone / weights.sum(),
                "cls": alone[0],
                "lasttoken": alone[-1],
                "max": alone.max(0),
            }[pooling]
            if similarity == "cosine":
                by_hand /= np.sqrt((by_hand**2).sum())
            np.testing.assert_allclose(embedding.numpy(), by_hand, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (4, 32)
    lengths = found.norm(dim=1)
    unit = torch.allclose(lengths, torch.ones(4), atol=1e-6)
    assert unit == (similarity == "cosine")


@pytest.mark.parametrize("packed", LAYOUTS)
def test_embeddings_do_not_depend_on_the_token_batches(tiny_model, packed):
    encoder = load(tiny_model).eval()
    rows = token_rows([5, 1, 60, 33, 7, 7, 12, 2, 20, 41, 3, 9, 15])
    with torch.no_grad():
        single = embed(encoder, rows, max_tokens=1)
        assert single.std(0).mean() > 0.01  # they differ by text
        for max_tokens in (50, 133, 100_000):
            torch.testing.assert_close(embed(encoder, rows, max_tokens, packed), single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", LAYOUTS)
def test_equal_seeds_give_equal_dropout_and_other_seeds_another(tiny_model, packed):
    encoder = load(tiny_model)
    assert encoder.training
    rows = token_rows([8, 8, 8, 8])
    once = embed(encoder, rows, 16, packed, seeds=[1, 2])
    torch.rand(7)  # whatever else draws random numbers in between
    again = embed(encoder, rows, 16, packed, seeds=[1, 2])
    other = embed(encoder, rows, 16, packed, seeds=[1, 3])
    assert torch.equal(once, again)
    assert torch.equal(once[2:], other[2:])  # the first token batch is that of the last rows
    assert (once[:2] - other[:2]).abs().max() > 0.01
    assert not torch.equal(once, embed(encoder.eval(), rows, 16, packed))


def test_a_token_batches_dropout_depends_on_its_seed_alone(tiny_model):
    encoder = load(tiny_model)
    first, second = (length_sorted_batches(token_rows([8, 8], seed), 16, PAD)[0][0] for seed in (0, 1))
    assert torch.equal(encoder([first, second], [5, 6])[2:], encoder([second], [6]))


def test_a_dropout_of_zero_switches_all_dropout_off(tiny_model):
    rows = token_rows([12, 12])
    own, without = load(tiny_model), load(tiny_model, dropout=0.0)
    assert not torch.equal(embed(own, rows, 50, seeds=[1]), embed(own, rows, 50, seeds=[2]))
    assert torch.equal(embed(without, rows, 50, seeds=[1]), embed(without, rows, 50, seeds=[2]))


@pytest.mark.parametrize("packed", LAYOUTS)
def test_the_dropout_override_reaches_attention(tiny_model, packed):
    encoder = load(tiny_model, dropout=0.4)
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.4
            if not name.endswith("attention.self.dropout"):
                module.p = 0.0  # what is left varies by attention alone
    rows = token_rows([12, 12])
    first, second = (embed(encoder, rows, 50, packed, seeds=[seed]) for seed in (1, 2))
    assert (first - second).abs().max() > 0.01


def test_the_dropout_override_is_not_saved_and_stays_in_use(tiny_model, tmp_path):
    encoder = load(tiny_model, dropout=0.4)
    save_encoder(encoder, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    assert encoder.transformer.config.hidden_dropout_prob == 0.4
    assert load(str(tmp_path)).transformer.config.hidden_dropout_prob == 0.1


def test_the_pooler_is_kept_and_frozen_and_every_other_parameter_gets_a_gradient(tiny_model, tmp_path):
    encoder = load(tiny_model)
    gradients = embedding_gradients(encoder, token_rows([8, 12]))
    frozen = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    assert frozen == {"model.0.model.pooler.dense.weight", "model.0.model.pooler.dense.bias"}
    assert gradients.keys() == {name for name, _ in encoder.named_parameters()} - frozen

    save_encoder(encoder, str(tmp_path))
    with safe_open(Path(tiny_model) / "model.safetensors", "pt") as before:
        with safe_open(tmp_path / "model.safetensors", "pt") as after:
            assert before.keys() == after.keys()
            assert all(torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in before.keys())


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradient_with_dropout_on(tiny_model, use_reentrant, packed):
    rows = token_rows([8, 12, 20, 30, 31])
    encoder = load(tiny_model)
    calls = []
    for layer in encoder.transformer.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: calls.append(1))
    plain = embedding_gradients(encoder, rows, packed)
    num_plain = len(calls)
    encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    checkpointed = embedding_gradients(encoder, rows, packed)
    assert len(calls) - num_plain == 2 * num_plain  # the layers really ran again in the backward
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_bytes_of_a_graph_are_those_that_autograd_keeps(tiny_model):
    without = load(tiny_model, dropout=0.0)
    sizes = [
        without.graph_bytes(length_sorted_batches(token_rows([length] * count), 10_000, PAD, True)[0][0])
        for length, count in ((20, 10), (20, 20), (40, 10))
    ]
    # Beyond the tables that every token batch looks up, memory is proportional to the tokens.
    assert sizes[0] > 200 * 2 * 8 * 32 * 4
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1) and sizes[2] == pytest.approx(sizes[1], rel=0.1)


def test_packing_works_here_and_leaves_the_encoder_as_it_was(tiny_model):
    encoder = load(tiny_model)
    assert encoder.can_pack and encoder.packing_works()
    assert encoder.training and all(value.grad is None for value in encoder.parameters())


def test_an_attention_that_is_wrong_or_raises_does_not_work(tiny_model, monkeypatch):
    encoder = load(tiny_model)
    monkeypatch.setattr(attention, "attend", lambda query, key, value, *_: value)
    assert not encoder.packing_works()

    def no_kernel(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(attention, "attend", no_kernel)
    assert not encoder.packing_works()


def test_a_gradient_of_packed_token_batches_is_that_of_padded_ones(tiny_model):
    rows = token_rows([3, 9, 9, 17, 30, 5])
    encoder = load(tiny_model, dropout=0.0)
    padded, packed = (embedding_gradients(encoder, rows, layout) for layout in (False, True))
    assert padded.keys() == packed.keys()
    everything = [torch.cat([part[name].flatten() for name in padded]) for part in (padded, packed)]
    assert everything[0].norm() > 0.1
    assert (everything[0] - everything[1]).norm() < 1e-5 * everything[0].norm()
