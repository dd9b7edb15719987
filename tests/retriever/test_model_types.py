"""A model of each type embeds alike packed, padded, and in sentence-transformers after it is trained and saved."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.model_types import MODEL_TYPES, model_type
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.models import SMALL, small_encoder, small_model
from tests.retriever.test_folder import assert_agreement_before_and_after_training, sentence_transformers_folder
from tests.retriever.test_token_batches import token_rows


@dataclass(frozen=True)
class Case:
    """A small model of a type, its tokenizer, and the settings that a user gives."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    language_model: bool = False  # saved with its output layer, whose weights are those of the input
    dense: bool = False  # in a folder of sentence-transformers that ends with a Dense module


GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ONE_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}  # in the second layer of two
GEMMA = {
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
BIDIRECTIONAL_GEMMA = GEMMA | {"use_bidirectional_attention": True}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
DEBERTA = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
PAD_LEFT, LAST_TOKEN = {"padding_side": "left"}, {"pooling": "lasttoken"}
NO_PAD = {"pad_token": None, "eos_token": "[SEP]"}
CASES = {
    "albert": Case("albert"),
    "bert": Case("bert"),
    "bert without types of tokens": Case("bert", tokenizer={"model_input_names": ["input_ids", "attention_mask"]}),
    "bert as a decoder": Case("bert", {"is_decoder": True}, packed=False),
    "camembert": Case("camembert"),
    "deberta-v2": Case("deberta-v2", DEBERTA, packed=False),
    "distilbert": Case("distilbert"),
    "electra": Case("electra"),
    "ernie": Case("ernie"),
    "eurobert": Case("eurobert", GROUPED),
    "gemma3": Case("gemma3_text", GEMMA, PAD_LEFT, LAST_TOKEN),
    "gemma3 as EmbeddingGemma": Case("gemma3_text", BIDIRECTIONAL_GEMMA, dense=True),
    "gte": Case("gte"),
    "jina_embeddings_v3": Case("jina_embeddings_v3"),
    "llama": Case("llama", GROUPED | {"pad_token_id": None}, NO_PAD, LAST_TOKEN),
    "llama made bidirectional": Case("llama", {"is_causal": False}),
    "mistral": Case("mistral", GROUPED | {"sliding_window": 9}, PAD_LEFT, LAST_TOKEN),
    "mistral without a window": Case("mistral", {"sliding_window": None, "pad_token_id": None}, NO_PAD | PAD_LEFT),
    "mistral made bidirectional": Case("mistral", {"sliding_window": 9, "is_causal": False}),
    "modernbert": Case("modernbert", {"local_attention": 16, "global_attn_every_n_layers": 2}),
    "mpnet": Case("mpnet", packed=False),
    "nomic_bert": Case("nomic_bert"),
    "qwen2": Case("qwen2", ONE_WINDOW),
    "qwen2 made bidirectional": Case("qwen2", ONE_WINDOW | {"is_causal": False}),
    "qwen3": Case("qwen3", GROUPED, PAD_LEFT, language_model=True),  # whose last token is pooled then
    "qwen3 with a window": Case("qwen3", ONE_WINDOW | GROUPED | {"pad_token_id": None}, NO_PAD, {"pooling": "mean"}),
    "roberta": Case("roberta"),
    "t5": Case("t5", T5, packed=False),
    "xlm-roberta": Case("xlm-roberta"),
}
PACKED_TYPES = [name for name, kind in MODEL_TYPES.items() if kind.packed]


def make(case: Case, folder: Path) -> str:
    """Saves the model of a case; returns its folder."""
    source = small_model(folder / "source", case.kind, case.tokenizer, **case.config)
    if case.language_model:
        config = AutoConfig.for_model(case.kind, **{**SMALL, **case.config}, tie_word_embeddings=True)
        AutoModelForCausalLM.from_config(config).save_pretrained(source)
    return sentence_transformers_folder(source, folder / "theirs", dense=True) if case.dense else source


def compare_packed_with_padded(encoder: Encoder) -> None:
    rows = token_rows([3, 9, 9, 40, 2, 200])
    found = []
    for packed in (False, True):
        token_batches, order = length_sorted_batches(rows, 10_000, encoder.tokenizer.pad_token_id, packed)
        encoder.zero_grad()
        embeddings = encoder(token_batches)[order]
        (embeddings * torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)).sum().backward()
        gradients = [value.grad.flatten() for value in encoder.parameters() if value.grad is not None]
        found.append((embeddings.detach(), torch.cat(gradients)))
    assert found[0][0].std(0).mean() > 0.01 and found[0][1].norm() > 0.1
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    assert (found[1][1] - found[0][1]).norm() < 1e-5 * found[0][1].norm()


@pytest.mark.parametrize("name", CASES)
def test_a_model_embeds_alike_packed_padded_and_when_it_is_trained_and_saved_in_sentence_transformers(name, tmp_path):
    case = CASES[name]
    flags = {} if case.dense else {"max_seq_length": 60, **case.flags}  # a folder with modules keeps its own settings
    embedder = assert_agreement_before_and_after_training(make(case, tmp_path), tmp_path / "saved", **flags)
    assert embedder.options.packed == case.packed
    assert not getattr(embedder.encoder.transformer.config, "use_cache", False)
    if case.packed:
        compare_packed_with_padded(embedder.encoder)


def test_every_packed_type_is_among_these_models():
    assert {case.kind for case in CASES.values() if case.packed} == set(PACKED_TYPES) and len(PACKED_TYPES) >= 18


@pytest.mark.parametrize(("kind", "pad_id", "first"), [("roberta", 1, 2), ("roberta", 0, 1), ("bert", 1, 0)])
def test_positions_start_behind_the_padding_token_where_the_table_says_so(kind, pad_id, first, tmp_path):
    assert small_encoder(tmp_path, kind, pad_token_id=pad_id).first_position == first


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_a_model_takes_packed_texts_in_bf16_with_dropout_in_attention(kind, tmp_path):
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    encoder = small_encoder(tmp_path, kind, head_dim=8, **dict.fromkeys(names, 0.1)).train()
    token_batches, _ = length_sorted_batches(token_rows([3, 9, 9, 40]), 10_000, 1, packed=True)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder(token_batches, [1])
    embeddings[:, 0].sum().backward()
    gradients = [value.grad for value in encoder.parameters() if value.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients) and len(gradients) >= 14


def test_a_type_that_is_not_in_the_table_is_padded():
    assert not model_type("fnet").packed and "fnet" not in MODEL_TYPES
