"""sentence-transformers opens our model folders, we open its folders, and other folders are refused."""

import json
import random
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoConfig, AutoTokenizer, GPT2Config

from rqa_ray.errors import InputError
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec, read_settings
from rqa_ray.retriever.folder import load_encoder, load_weights, save_encoder, save_prompts
from rqa_ray.retriever.step import forward_backward
from rqa_ray.retriever.token_batches import length_sorted_batches
from rqa_ray.retriever.tokenizer import check_model
from tests.models import save_model, save_tokenizer, small_model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, which a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def texts() -> list[str]:
    """Ordinary texts, an empty text, very long texts, other scripts, emoji, capitals."""
    generator = random.Random(0)

    def words(number: int) -> str:
        return " ".join("".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(number))

    odd = ["", " ", "\n\t", "?", "Straße über Ärger", "поиск документов", "🙂🙃", "a🙂b", "x" * 500, "UPPER Case"]
    return [*odd, words(300), words(80), *(words(generator.randint(1, 15)) + "?" for _ in range(10))]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def train(embedder: Embedder) -> None:
    """Makes two steps of SGD that push each embedding in its own direction."""
    encoder = embedder.encoder.train()
    rows = embedder.tokenizer.questions(texts()[-8:]) + embedder.tokenizer.passages(texts()[-8:])
    optimizer = torch.optim.SGD([value for value in encoder.parameters() if value.requires_grad], lr=0.1)
    away = torch.randn(len(rows), encoder.dimensions, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        token_batches, _ = length_sorted_batches(rows, 100, embedder.options.pad_id, embedder.options.packed)
        seeds = range(len(token_batches))
        forward_backward(encoder, token_batches, seeds, lambda found: (found * away).sum(), _backward, False)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    encoder.eval()


def _backward(loss: torch.Tensor) -> None:
    loss.backward()


def both(embedder: Embedder) -> torch.Tensor:
    return torch.cat([embedder.questions(texts()), embedder.passages(texts())])


def theirs(model: SentenceTransformer, settings: EncoderSettings, batch_size: int = 8) -> torch.Tensor:
    """Returns the embeddings of questions and passages by sentence-transformers, with unit length if they are cut."""
    options: dict[str, Any] = {"convert_to_tensor": True, "batch_size": batch_size}
    options["normalize_embeddings"] = settings.similarity == "cosine" and bool(settings.truncate_dim)
    return torch.cat([encode(texts(), **options) for encode in (model.encode_query, model.encode_document)])


def assert_agreement_before_and_after_training(source: str, saved: Path, **flags: Any) -> Embedder:
    """Checks that embeddings equal those of sentence-transformers before training, and after saving the result."""
    settings = read_settings(source, **flags)
    embedder = Embedder(load_encoder(source, settings).eval())
    before = both(embedder)
    if not flags and (Path(source) / "modules.json").exists():
        found = theirs(SentenceTransformer(source, device="cpu"), settings)
        if settings.similarity == "cosine":
            found = torch.nn.functional.normalize(found)
        assert (before - found).abs().max() < 1e-5
    train(embedder)
    ours = both(embedder)
    assert ours.std(0).mean() > 0.01 and (ours - before).abs().max() > 1e-3
    save_encoder(embedder.encoder, str(saved))
    opened = SentenceTransformer(str(saved), device="cpu")
    assert (ours - theirs(opened, settings)).abs().max() < 1e-5
    assert (ours[::7] - theirs(opened, settings, 1)[::7]).abs().max() < 1e-5
    assert read_settings(str(saved)) == settings
    assert opened.similarity_fn_name == settings.similarity and opened.max_seq_length == settings.max_seq_length
    return embedder


PROMPTS = {"query": "query: ", "document": "passage: ", "sts": "sts "}
CASES: dict[str, dict[str, Any]] = {
    **{mode: {"pooling_mode": mode} for mode in st.Pooling.POOLING_MODES},
    "two modes": {"pooling_mode": ("cls", "mean")},
    "dot": {"similarity_fn_name": "dot"},
    "dot of unit vectors": {"similarity_fn_name": "dot", "normalize": True},
    "normalize": {"normalize": True},
    "dense": {"dense": True},
    "dense and normalize": {"dense": True, "normalize": True, "pooling_mode": "cls"},
    "dense and dot": {"dense": True, "similarity_fn_name": "dot", "prompts": PROMPTS},
    "prompts": {"prompts": PROMPTS, "default_prompt_name": "sts"},
    "prompts that no passage gets": {"prompts": {"query": "q: ", "passage": "p: ", "corpus": "c: "}},
    "prompts left out of the mean": {"prompts": PROMPTS, "include_prompt": False},
    "prompts left out of the weighted mean": {
        "prompts": PROMPTS,
        "include_prompt": False,
        "pooling_mode": ("weightedmean", "cls", "lasttoken", "max"),
    },
    "cut to 16 dimensions": {"truncate_dim": 16, "normalize": True},
    "cut and dot": {"truncate_dim": 16, "similarity_fn_name": "dot", "normalize": True},
    "lengths of questions and passages": {"query_length": 9, "document_length": 30, "prompts": PROMPTS},
    "lower case": {"do_lower_case": True, "cased": True},
    "layer norm and dropout": {"more": [st.LayerNorm(32), st.Dropout(0.3)]},
    "in a subfolder": {"subfolder": True, "dense": True, "prompts": PROMPTS},
}


def sentence_transformers_folder(
    source: str,
    folder: Path,
    *,
    dense: bool = False,
    normalize: bool = False,
    subfolder: bool = False,
    cased: bool = False,
    more: list | None = None,
    pooling_mode: Any = "mean",
    include_prompt: bool = True,
    query_length: int | None = None,
    document_length: int | None = None,
    do_lower_case: bool = False,
    **options: Any,
) -> str:
    """Writes a folder as sentence-transformers does.

    Also as versions before 0.4 did, with everything in a subfolder.
    """
    torch.manual_seed(1)
    if cased:
        source = shutil.copytree(source, f"{folder}-cased")
        save_tokenizer(Path(source), do_lower_case=False)
    transformer = st.Transformer(
        source,
        max_seq_length=40,
        query_length=query_length,
        document_length=document_length,
        do_lower_case=do_lower_case,
    )
    pooling = st.Pooling(32, pooling_mode, include_prompt)
    parts = [transformer, pooling, *(more or [])]
    parts += [st.Dense(pooling.get_embedding_dimension(), 24)] if dense else []
    parts += [st.Normalize()] if normalize else []
    SentenceTransformer(modules=parts, device="cpu", **options).save(str(folder))
    if do_lower_case:
        change(folder / "sentence_bert_config.json", do_lower_case=True)
    if subfolder:
        inner = folder / "0_Transformer"
        inner.mkdir()
        for path in folder.iterdir():
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(inner / path.name)
        modules = read(folder / "modules.json")
        (folder / "modules.json").write_text(json.dumps([modules[0] | {"path": inner.name}, *modules[1:]]))
    return str(folder)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_of_sentence_transformers_is_trained_and_keeps_all_its_settings(tiny_model, tmp_path, name):
    source = sentence_transformers_folder(tiny_model, tmp_path / "theirs", **CASES[name])
    saved = tmp_path / "saved"
    assert_agreement_before_and_after_training(source, saved)
    own, kept = (read(Path(folder) / "config_sentence_transformers.json") for folder in (source, saved))
    assert kept == own
    own, kept = ([read(Path(folder) / "modules.json")] for folder in (source, saved))
    kinds, now = ([part["type"] for part in part_list[0]] for part_list in (own, kept))
    is_appended = own and read_settings(source).normalize and not kinds[-1].endswith("Normalize")
    assert now[: len(kinds)] == kinds and len(now) == len(kinds) + is_appended
    for part in kept[0][1 : len(kinds)]:
        files = [Path(folder) / part["path"] / "config.json" for folder in (source, saved)]
        assert all(not file.exists() for file in files) or read(files[0]) == read(files[1])


@pytest.mark.parametrize("pooling", ["last", "weightedmean"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_flags_make_the_modules_of_a_bare_encoder(tiny_model, tmp_path, pooling, similarity):
    prefixes = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    flags = {"pooling": pooling, "similarity": similarity, "max_seq_length": 48, **prefixes}
    assert_agreement_before_and_after_training(tiny_model, tmp_path / "saved", **flags)


def test_sentence_transformers_embeds_like_a_saved_minilm(minilm, tmp_path):
    assert_agreement_before_and_after_training(minilm, tmp_path / "saved", query_prefix="query: ", max_seq_length=32)


def test_a_flag_overrides_the_pooling_and_the_prompts_of_a_folder(tiny_model, tmp_path):
    options = {"prompts": {"query": "q: ", "passage": "p: "}, "normalize": True}
    source = sentence_transformers_folder(tiny_model, tmp_path / "theirs", **options)
    saved = tmp_path / "saved"
    assert_agreement_before_and_after_training(source, saved, pooling="cls", similarity="dot", passage_prefix="")
    assert read(saved / "config_sentence_transformers.json")["prompts"] == {
        "query": "q: ",
        "document": "",
        "passage": "p: ",
    }
    assert [part["type"].rsplit(".")[-1] for part in read(saved / "modules.json")] == ["Transformer", "Pooling"]
    source = sentence_transformers_folder(tiny_model, tmp_path / "dense", dense=True)
    settings = EncoderSettings("cls+mean", max_seq_length=40)
    assert "its Dense module takes 32 numbers" in refusal(load_encoder, source, settings)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_an_instruction_embeds_like_the_prompt_that_the_saved_folder_has_of_it(tiny_model, tmp_path, include_prompt):
    source, saved = tmp_path / "theirs", tmp_path / "saved"
    options = {"prompts": {"query": "query: ", "sts": "sts "}, "include_prompt": include_prompt, "normalize": True}
    encoder = load_encoder(sentence_transformers_folder(tiny_model, source, **options), read_settings(str(source)))
    save_encoder(encoder, str(saved))
    save_prompts(saved, {"nq": "Find an answer: "})
    model = SentenceTransformer(str(saved), device="cpu")
    assert model.prompts == {"query": "query: ", "document": "", "sts": "sts ", "nq": "Find an answer: "}
    embedder = Embedder(encoder.eval())
    ours = embedder.rows(embedder.tokenizer.questions(texts(), ["Find an answer: "] * len(texts())))
    for found in (model.encode(texts(), prompt="Find an answer: "), model.encode_query(texts(), prompt_name="nq")):
        assert (ours - torch.from_numpy(found)).abs().max() < 1e-5
    named = Embedder.load(ModelSpec(str(saved), read_settings(str(saved), query_prompt_name="nq")), "cpu")
    assert torch.equal(named.questions(texts()), ours) and (embedder.questions(texts()) - ours).abs().max() > 1e-2


def test_a_saved_encoder_loads_to_the_same_bits(tiny_model, tmp_path):
    settings = read_settings(tiny_model)
    encoder = load_encoder(tiny_model, settings)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(0.01)
    save_encoder(encoder, str(tmp_path))
    again, other = load_encoder(str(tmp_path), settings), load_encoder(tiny_model, settings)
    load_weights(other, str(tmp_path))
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) and torch.equal(other.state_dict()[name], value)


def test_a_model_with_only_a_transformer_in_its_modules_gets_a_pooling(copy, tmp_path):
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (copy / "modules.json").write_text(json.dumps([module]))
    embedder = Embedder(load_encoder(str(copy), read_settings(str(copy))))
    assert [type(module).__name__ for module in embedder.encoder.model] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_without_padding_token_is_saved_so_that_it_encodes_batches(tmp_path, side):
    source = tmp_path / "source"
    save_model(source, GPT2Config(vocab_size=150, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    names = ["input_ids", "attention_mask"]  # as GPT-2's own: its model would take types of tokens
    save_tokenizer(source, pad_token=None, eos_token="[SEP]", padding_side=side, model_input_names=names)
    assert AutoTokenizer.from_pretrained(source).pad_token is None
    saved = tmp_path / "saved"
    assert_agreement_before_and_after_training(str(source), saved, pooling="lasttoken")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[SEP]", "right")
    save_tokenizer(source, pad_token=None)
    assert "neither a padding token nor an end-of-text" in refusal(load_encoder, str(source), EncoderSettings())


def test_of_a_t5_the_encoder_is_saved(tmp_path):
    source = small_model(tmp_path / "source", "t5", d_kv=8, d_ff=64)
    save_encoder(load_encoder(source, EncoderSettings()), str(tmp_path / "saved"))
    names = {folder: load_file(tmp_path / folder / "model.safetensors").keys() for folder in ("source", "saved")}
    assert names["saved"] == {name for name in names["source"] if "decoder" not in name}


def test_a_checkpoint_without_pooler_weights_saves_no_random_ones(copy, tmp_path):
    kept = {name: value for name, value in weights(copy).items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights(copy)) - 2
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    embedder = assert_agreement_before_and_after_training(str(copy), tmp_path / "saved")
    assert weights(tmp_path / "saved").keys() == kept.keys()
    load_weights(embedder.encoder, str(tmp_path / "saved"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def refusal(function, *args, **options) -> str:
    """Returns the message of the InputError, which has to be one line."""
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_are_refused(copy):
    kept = {name: value for name, value in weights(copy).items() if "layer.1.output" not in name}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    message = refusal(load_encoder, str(copy), EncoderSettings())
    assert str(copy) in message and "weights are missing: encoder.layer.1.output" in message


def test_weights_under_a_foreign_prefix_are_refused_and_not_made_up(copy):
    save_file({f"other.{name}": value for name, value in weights(copy).items()}, copy / "model.safetensors")
    assert "weights are missing" in refusal(load_encoder, str(copy), EncoderSettings())


def test_weights_of_another_shape_are_refused(copy):
    changed = weights(copy)
    changed["embeddings.word_embeddings.weight"] = torch.zeros(7, 32)
    save_file(changed, copy / "model.safetensors", {"format": "pt"})
    message = refusal(load_encoder, str(copy), EncoderSettings())
    assert str(copy) in message and "weights have another shape: embeddings.word_embeddings.weight" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(copy, value):
    changed = weights(copy)
    changed["encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(changed, copy / "model.safetensors", {"format": "pt"})
    message = refusal(load_encoder, str(copy), EncoderSettings())
    assert "encoder.layer.1.output.dense.weight are not finite" in message


@pytest.mark.parametrize("spoil", ["truncated", "absent"])
def test_a_weights_file_that_is_no_weights_file_is_refused(copy, spoil):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if spoil == "truncated":
        path.write_bytes(content[: len(content) // 2])
    assert str(copy) in refusal(load_encoder, str(copy), EncoderSettings())


def test_weights_of_another_kind_of_encoder_are_not_loaded_into_one(tiny_model, copy):
    encoder = load_encoder(tiny_model, EncoderSettings())
    change(copy / "config.json", num_hidden_layers=1)
    assert "weights are of another model: model.0.model.encoder.layer.1" in refusal(load_weights, encoder, str(copy))


def test_a_tokenizer_without_words_or_with_more_tokens_than_embeddings_is_refused(copy):
    spec = ModelSpec(str(copy), read_settings(str(copy)))
    check_model(spec)
    number = len(AutoTokenizer.from_pretrained(copy))
    change(copy / "config.json", vocab_size=number - 1)
    expected = f"its tokenizer knows {number} tokens, but its model has embeddings for {number - 1}"
    assert expected in refusal(check_model, spec)
    for path in [*copy.glob("tokenizer*"), *copy.glob("vocab*")]:
        path.unlink()
    assert "its tokenizer knows no words" in refusal(check_model, spec)


def test_a_head_computes_in_fp32_whatever_the_transformer_does(tiny_model, tmp_path):
    source = sentence_transformers_folder(tiny_model, tmp_path / "theirs", dense=True)
    encoder = load_encoder(source, read_settings(source), bf16=True).eval()
    assert {value.dtype for value in encoder.head[1].parameters()} == {torch.float32}
    assert {value.dtype for value in encoder.transformer.parameters()} == {torch.bfloat16}
    exact = load_encoder(source, read_settings(source)).eval()
    found, expected = (Embedder(one, EmbedOptions(0, 500)).questions(texts()) for one in (encoder, exact))
    assert found.dtype == torch.float32 and 1e-5 < (found - expected).norm(dim=1).max() < 0.1


def test_a_dropout_override_reaches_the_head_and_is_not_saved(tiny_model, tmp_path):
    source = sentence_transformers_folder(tiny_model, tmp_path / "theirs", more=[st.Dropout(0.3)])
    encoder = load_encoder(source, read_settings(source), dropout=0.0)
    assert {part.p for part in encoder.modules() if isinstance(part, torch.nn.Dropout)} == {0.0}
    save_encoder(encoder, str(tmp_path / "saved"))
    assert read(tmp_path / "saved" / "2_Dropout" / "config.json") == {"dropout": 0.3}
    assert AutoConfig.from_pretrained(tmp_path / "saved").hidden_dropout_prob == 0.1
