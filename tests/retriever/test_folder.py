"""Model folders: what sentence-transformers makes of ours, what we make of its, and what is refused."""

import importlib
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

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder import POOLINGS, Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.folder import load_encoder, load_weights, save_encoder
from rqa_ray.retriever.token_batches import length_sorted_batches
from rqa_ray.retriever.tokenizer import TextTokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def texts() -> list[str]:
    """100 texts: ordinary, empty, over-long, in other scripts, emoji."""
    generator = random.Random(0)

    def words(number: int) -> str:
        return " ".join("".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(number))

    odd = [
        "",
        " ",
        "\n\t",
        "?",
        "Straße über Ärger",
        "検索モデル",
        "поиск документов",
        "بحث",
        "🙂🙃",
        "a🙂b",
        "x" * 500,
    ]
    long = [words(300), words(80)]
    return odd + long + [words(generator.randint(1, 15)) + generator.choice(["", "?", "."]) for _ in range(87)]


def embed(encoder: Encoder, rows: list) -> torch.Tensor:
    token_batches, order = length_sorted_batches(rows, 2000, pad_id=0)
    encoder.eval()
    with torch.inference_mode():
        return encoder(token_batches)[order]


def save(encoder: Encoder, tokenizer: TextTokenizer, folder: Path) -> Path:
    save_encoder(encoder, tokenizer.tokenizer, str(folder))
    return folder


def assert_sentence_transformers_agrees(source: str, folder: Path, **flags) -> None:
    """Embeds 100 texts as questions, as passages and without a prompt with what was loaded from `source` and saved."""
    settings = read_settings(source, **flags)
    encoder, tokenizer = load_encoder(source, settings), TextTokenizer(source, settings)
    questions, passages = tokenizer.questions(texts()), tokenizer.passages(texts())
    assert tokenizer.num_truncated > 2
    ours = [embed(encoder, rows) for rows in (questions, passages)]

    theirs = SentenceTransformer(str(save(encoder, tokenizer, folder)), device="cpu")
    assert theirs.max_seq_length == settings.max_seq_length
    assert theirs.similarity_fn_name == settings.similarity
    found = [
        theirs.encode_query(texts(), convert_to_tensor=True),
        theirs.encode_document(texts(), convert_to_tensor=True),
    ]
    for our, their in zip(ours, found, strict=True):
        assert our.std(0).mean() > 0.01
        assert (our - their).abs().max() < 1e-5
    some = slice(-10, None)
    by_name = theirs.encode(texts()[some], prompt_name="query", convert_to_tensor=True)
    assert (ours[0][some] - by_name).abs().max() < 1e-5
    if settings.has_prefixes:
        assert (ours[0] - ours[1]).abs().max() > 0.01  # the prefixes matter
        assert (theirs.encode(texts()[some], convert_to_tensor=True) - ours[0][some]).abs().max() > 0.01
    assert read_settings(str(folder)) == settings


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_embeds_like_the_encoder_that_was_saved(tiny_model, tmp_path, pooling, similarity):
    prefixes = {"query_prefix": "query: ", "passage_prefix": "passage: "} if similarity == "cosine" else {}
    flags = {"pooling": pooling, "similarity": similarity, "max_seq_length": 48, **prefixes}
    assert_sentence_transformers_agrees(tiny_model, tmp_path / "saved", **flags)


def test_sentence_transformers_embeds_like_a_saved_minilm(minilm, tmp_path):
    assert_sentence_transformers_agrees(minilm, tmp_path / "saved", query_prefix="query: ")


def test_a_saved_encoder_loads_to_the_same_bits(tiny_model, tmp_path):
    settings = read_settings(tiny_model)
    encoder, tokenizer = load_encoder(tiny_model, settings), TextTokenizer(tiny_model, settings)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(0.01)
    folder = str(save(encoder, tokenizer, tmp_path))
    again, other = load_encoder(folder, settings), load_encoder(tiny_model, settings)
    load_weights(other, folder)
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value) and torch.equal(other.state_dict()[name], value)


def save_with_sentence_transformers(source: str, folder: Path, pooling="mean", normalize=True, **options) -> str:
    try:
        modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ImportError:  # before version 6
        modules = importlib.import_module("sentence_transformers.models")
    parts = [modules.Transformer(source, max_seq_length=40), modules.Pooling(32, pooling_mode=pooling)]
    parts += [modules.Normalize()] if normalize else []
    SentenceTransformer(modules=parts, device="cpu", **options).save(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("their_pooling", "pooling"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last"), ("max", "max")]
)
def test_what_sentence_transformers_saved_is_read_with_its_settings(tiny_model, tmp_path, their_pooling, pooling):
    prompts = {"query": "q: ", "document": "d: "}
    folder = save_with_sentence_transformers(
        tiny_model, tmp_path, their_pooling, normalize=False, prompts=prompts, similarity_fn_name="dot"
    )
    assert read_settings(folder) == EncoderSettings(pooling, "dot", False, 40, "q: ", "d: ")


def test_what_sentence_transformers_saved_gives_its_embeddings(tiny_model, tmp_path):
    folder = save_with_sentence_transformers(tiny_model, tmp_path / "theirs", "max", prompts={"query": "q: "})
    settings = read_settings(folder)
    assert settings == EncoderSettings("max", "cosine", True, 40, "q: ", "")
    rows = TextTokenizer(folder, settings).questions(texts())
    theirs = SentenceTransformer(folder, device="cpu").encode_query(texts(), convert_to_tensor=True)
    assert (embed(load_encoder(folder, settings), rows) - theirs).abs().max() < 1e-5
    assert_sentence_transformers_agrees(folder, tmp_path / "ours")


def test_unit_length_vectors_are_compared_by_cosine_even_where_the_folder_says_dot(tiny_model, tmp_path):
    folder = save_with_sentence_transformers(tiny_model, tmp_path, similarity_fn_name="dot")
    assert (read_settings(folder).similarity, read_settings(folder).normalize) == ("cosine", True)


def test_a_model_in_a_subfolder_is_read_and_saved_at_the_top(tiny_model, tmp_path):
    # The layout of sentence-transformers before 0.4.
    old = tmp_path / "old"
    shutil.copytree(tiny_model, old / "0_Transformer")
    (old / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 33}')
    module = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (old / "modules.json").write_text(json.dumps([module]))
    assert read_settings(str(old)).max_seq_length == 33
    assert_sentence_transformers_agrees(str(old), tmp_path / "saved")


def test_settings_default_to_the_folder_and_flags_override_them(tiny_model, minilm, tmp_path):
    assert read_settings(tiny_model) == EncoderSettings("mean", "cosine", True, 64, "", "")
    assert read_settings(minilm) == EncoderSettings("mean", "cosine", True, 256, "", "")
    saved = EncoderSettings("cls", "dot", False, 20, "q: ", "p: ")
    save(load_encoder(tiny_model, saved), TextTokenizer(tiny_model, saved), tmp_path)
    assert read_settings(str(tmp_path)) == saved
    flags: dict[str, Any] = {
        "pooling": "max",
        "similarity": "cosine",
        "max_seq_length": 64,
        "query_prefix": "",  # a prefix can be taken away
        "passage_prefix": "x ",
    }
    assert read_settings(str(tmp_path), **flags) == EncoderSettings("max", "cosine", True, 64, "", "x ")


def test_without_any_sentence_transformers_file_the_length_is_what_the_positions_allow(copy):
    (copy / "sentence_bert_config.json").unlink()
    assert read_settings(str(copy)).max_seq_length == 64
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    assert read_settings(str(copy)).max_seq_length == 512
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "roberta", "max_position_embeddings": 66}))
    assert read_settings(str(copy), max_seq_length=64).max_seq_length == 64
    with pytest.raises(InputError, match="takes at most 64 tokens"):
        read_settings(str(copy), max_seq_length=65)


def test_a_length_that_stands_for_no_limit_is_none(copy):
    (copy / "sentence_bert_config.json").write_text("{}")
    (copy / "modules.json").write_text("[]")
    (copy / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    config = json.loads((copy / "config.json").read_text())
    del config["max_position_embeddings"]
    (copy / "config.json").write_text(json.dumps(config))
    assert read_settings(str(copy)).max_seq_length == 512


def test_describe_is_one_line_with_the_prefixes_where_there_are_any():
    assert EncoderSettings().describe() == "mean pooling, cosine similarity, up to 512 tokens"
    assert EncoderSettings(query_prefix="q: ").describe().endswith("tokens, prefixes 'q: ' / ''")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def refusal(function, *args, **options) -> str:
    """The message of the InputError, which has to be one line."""
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
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(RuntimeError, match="layer.1"):
        load_weights(encoder, str(copy))


def test_a_checkpoint_without_pooler_weights_saves_no_random_ones(copy, tmp_path):
    kept = {name: value for name, value in weights(copy).items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights(copy)) - 2
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    settings = read_settings(str(copy))
    encoder = load_encoder(str(copy), settings)
    folder = save(encoder, TextTokenizer(str(copy), settings), tmp_path / "saved")
    assert weights(folder).keys() == kept.keys()
    load_weights(encoder, str(folder))
    rows = TextTokenizer(str(folder), settings).passages(texts())
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts(), convert_to_tensor=True)
    assert (embed(encoder, rows) - theirs).abs().max() < 1e-5


def test_a_folder_that_is_no_model_folder_is_refused(tmp_path):
    assert "not a model folder" in refusal(read_settings, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "not a model folder" in refusal(read_settings, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert f"{tmp_path / 'config.json'}: not JSON" in refusal(read_settings, str(tmp_path))


def test_a_module_that_cannot_be_trained_here_is_refused(copy):
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (copy / "modules.json").write_text(json.dumps(modules))
    assert "has the module Dense" in refusal(read_settings, str(copy))


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode": "weightedmean"},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": False},
    ],
)
def test_a_pooling_that_is_none_of_ours_is_refused_unless_a_flag_chooses(copy, config):
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert "--pooling_type" in refusal(read_settings, str(copy))
    assert read_settings(str(copy), pooling="cls").pooling == "cls"


def test_a_length_beyond_the_models_positions_is_refused(tiny_model):
    assert read_settings(tiny_model, max_seq_length=64).max_seq_length == 64
    assert "takes at most 64 tokens" in refusal(read_settings, tiny_model, max_seq_length=65)


def test_a_model_is_found_as_a_folder_or_as_a_package(tiny_model, minilm, monkeypatch):
    assert find_model_folder(tiny_model) == tiny_model
    monkeypatch.chdir(Path(tiny_model).parent)
    assert find_model_folder(Path(tiny_model).name) == tiny_model
    assert find_model_folder(f"./{Path(tiny_model).name}") == tiny_model
    assert Path(minilm).name == "model" and (Path(minilm) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["/no/such/model", "./missing", "../missing", "~/missing-model", "a/b/c"])
def test_a_path_that_is_missing_is_refused_without_asking_the_hub(name):
    assert refusal(find_model_folder, name) == f"{name}: no such model folder"


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "no-such-model", "bad name!", "json"])
def test_a_name_that_the_hub_does_not_give_is_refused(name):
    assert "neither a model folder nor a model that the hub gave" in refusal(find_model_folder, name)
