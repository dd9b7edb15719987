"""LoRA trains only its small matrices, and what is saved is an ordinary model, or an adapter that peft opens."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoModel

from rqa_ray.errors import InputError
from rqa_ray.retriever.adapters import add_adapters, check_lora, load_adapter, merged, mix_adapters, save_adapter
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec
from rqa_ray.retriever.folder import load_encoder, save_encoder
from rqa_ray.settings import LoraSettings
from tests.models import save_tokenizer, small_model
from tests.retriever.test_folder import both, texts, train

peft = pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')

LORA = LoraSettings(lora_r=3)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def adapted(folder: str, lora: LoraSettings = LORA, seed: int = 0) -> Embedder:
    encoder = load_encoder(folder, EncoderSettings(max_seq_length=64), dropout=0.0)
    add_adapters(encoder, lora, folder, seed)
    return Embedder(encoder.eval())


def trained(folder: str, lora: LoraSettings = LORA, seed: int = 0) -> Embedder:
    embedder = adapted(folder, lora, seed)
    for _ in range(4):  # the first of two steps moves B alone
        train(embedder)
    return embedder


def state(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def weights_of(folder: Path, encoder: Encoder) -> dict[str, torch.Tensor]:
    """What the adapter in a folder makes of the pretrained weights, by peft alone."""
    opened = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(encoder.transformer.name_or_path), folder)
    return opened.merge_and_unload().state_dict()


def test_a_new_adapter_changes_no_embedding_and_only_its_matrices_are_trained(tiny_model) -> None:
    plain = Embedder(load_encoder(tiny_model, EncoderSettings(max_seq_length=64)).eval())
    embedder = adapted(tiny_model)
    assert torch.equal(both(embedder), both(plain))
    names = [name for name, value in embedder.encoder.named_parameters() if value.requires_grad]
    assert len(names) == 2 * 2 * 6 and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("pooler" in name for name in names)


def test_the_first_matrices_depend_on_the_seed_alone(tiny_model) -> None:
    random = torch.random.get_rng_state()
    one, same, other = (adapted(tiny_model, seed=seed).encoder.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert sum(not torch.equal(one[name], other[name]) for name in one) == 12


def test_the_head_is_frozen_too(tiny_model, tmp_path) -> None:
    parts = [st.Transformer(tiny_model), st.Pooling(32, "mean"), st.Dense(32, 16)]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    assert not any(
        value.requires_grad for value in torch.nn.ModuleList(adapted(str(tmp_path)).encoder.head).parameters()
    )


# The layers of gpt2 are Conv1D, and the layers of albert are shared.
@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2", "albert"])
def test_the_saved_folder_is_an_ordinary_model_with_the_same_embeddings(tmp_path, kind) -> None:
    source = small_model(tmp_path / "source", kind, n_layer=2, n_head=4, n_embd=32)
    save_tokenizer(tmp_path / "source", model_input_names=["input_ids", "attention_mask"])
    embedder = trained(source)
    ours, before = both(embedder), state(embedder.encoder)
    save_encoder(embedder.encoder, str(tmp_path / "saved"))
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    theirs = torch.cat(
        [encode(texts(), convert_to_tensor=True) for encode in (opened.encode_query, opened.encode_document)]
    )
    assert (ours - theirs).abs().max() < 1e-5
    pretrained = Embedder(load_encoder(source, EncoderSettings(max_seq_length=64)).eval())
    assert (ours - both(pretrained)).abs().max() > 1e-3
    assert opened[0].model.state_dict().keys() == pretrained.encoder.transformer.state_dict().keys()
    after = state(embedder.encoder)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_without_adapters_is_left_alone_when_it_is_saved(tiny_model) -> None:
    encoder = load_encoder(tiny_model, EncoderSettings())
    weight = encoder.transformer.encoder.layer[0].attention.self.query.weight
    with merged(encoder.transformer):
        assert encoder.transformer.encoder.layer[0].attention.self.query.weight is weight


def test_peft_opens_the_adapter_on_the_pretrained_model(tiny_model, tmp_path) -> None:
    encoder = trained(tiny_model, LoraSettings(lora_r=2, lora_alpha=7, lora_target=["query", "output.dense"])).encoder
    save_adapter(encoder, tmp_path / "adapter")
    found = weights_of(tmp_path / "adapter", encoder)
    with merged(encoder.transformer):
        expected = encoder.transformer.state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 7, tiny_model)


def test_an_adapter_that_is_read_again_is_the_same_to_the_bit(tiny_model, tmp_path) -> None:
    written, read = trained(tiny_model).encoder, adapted(tiny_model, seed=1).encoder
    save_adapter(written, tmp_path / "adapter")
    load_adapter(read, tmp_path / "adapter")
    expected = written.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())
    for other in (LoraSettings(lora_r=4), LoraSettings(lora_r=3, lora_target=["query"])):
        with pytest.raises(InputError, match="adapter: has matrices for other layers; pass the --lora_target"):
            load_adapter(adapted(tiny_model, other).encoder, tmp_path / "adapter")


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_mixed_adapter_adds_a_share_of_the_mean(tiny_model, tmp_path, share) -> None:
    encoders = [trained(tiny_model, seed=seed).encoder for seed in (0, 1)]
    folders = [tmp_path / "0", tmp_path / "1"]
    for encoder, folder in zip(encoders, folders, strict=True):
        save_adapter(encoder, folder)
    mix_adapters(folders, share, tmp_path / "mixed")
    one, other = (weights_of(folder, encoders[0]) for folder in folders)
    base = AutoModel.from_pretrained(tiny_model).state_dict()
    found = weights_of(tmp_path / "mixed", encoders[0])
    assert sum(not torch.equal(found[name], base[name]) for name in base) == 12
    for name, value in found.items():
        expected = base[name] + share * ((one[name] + other[name]) / 2 - base[name])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_a_check_without_weights_says_what_is_trained(tiny_model) -> None:
    weights = sum(value.numel() for value in AutoModel.from_pretrained(tiny_model).parameters())
    said = check_lora(LoraSettings(lora_r=4, lora_target=["query", "value"]), ModelSpec(tiny_model, EncoderSettings()))
    assert said == f"LoRA of rank 4 and alpha 8, 1,024 of {weights + 1024:,} weights are trained"


def test_a_target_that_no_layer_has_is_refused_with_the_names_that_there_are(tiny_model, tmp_path) -> None:
    said = "--lora_target q_proj: no linear layer has this name; choose among all-linear, dense, key, query, value"
    lora = LoraSettings(lora_r=4, lora_target=["query", "q_proj"])
    with pytest.raises(InputError) as error:
        check_lora(lora, ModelSpec(tiny_model, EncoderSettings()))
    assert str(error.value) == said
    t5 = ModelSpec(small_model(tmp_path, "t5", num_layers=2, d_model=32, d_kv=8, d_ff=64), EncoderSettings())
    assert check_lora(LoraSettings(lora_r=4, lora_target=["layer.0.SelfAttention.q"]), t5).startswith("LoRA of rank 4")
    with pytest.raises(InputError, match="choose among all-linear, k, o, q, v, wi, wo$"):
        check_lora(LoraSettings(lora_r=4, lora_target=["EncDecAttention.q"]), t5)  # the decoder is not used
