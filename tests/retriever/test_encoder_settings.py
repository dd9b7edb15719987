"""Settings are read from the files of a model folder, or refused by name, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import POOLING_FLAGS, EncoderSettings, read_settings
from rqa_ray.settings import Pooling


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, which a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change(path: Path, **values: Any) -> None:
    write(path, json.loads(path.read_text()) | values)


def write_modules(folder: Path, *kinds: str, **pooling: Any) -> Path:
    """Writes the modules.json of a folder, and the config of its pooling."""
    types = [f"sentence_transformers.models.{kind}" for kind in kinds]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    write(folder / "modules.json", [{"path": path, "type": kind} for path, kind in zip(paths, types, strict=True)])
    write(folder / "1_Pooling" / "config.json", pooling)
    return folder


def refusal(folder: Path | str, **flags: Any) -> str:
    """Returns the message of the InputError, which has to be one line."""
    with pytest.raises(InputError) as caught:
        read_settings(str(folder), **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_flag_of_the_pooling_has_one_list_of_names():
    assert set(get_args(Pooling)) == {"last", *POOLING_FLAGS}


def test_settings_default_to_the_folder_and_flags_override_them(tiny_model, minilm):
    assert read_settings(tiny_model) == EncoderSettings(max_seq_length=64)
    assert read_settings(minilm) == EncoderSettings("mean", "cosine", True, 256)
    flags: dict[str, Any] = {"pooling": "last", "similarity": "dot", "max_seq_length": 60, "passage_prefix": "x "}
    assert read_settings(tiny_model, **flags) == EncoderSettings("lasttoken", "dot", False, 60, "", "x ")


def test_processes_that_only_read_settings_or_tokenize_import_no_sentence_transformers(tiny_model, tmp_path):
    rows = f"{tmp_path}/rows"
    code = f"""
import pickle, sys
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
spec = ModelSpec({tiny_model!r}, read_settings({tiny_model!r}))
assert not {{"torch", "transformers", "sentence_transformers"}} & sys.modules.keys()
from rqa_ray.data.token_tables import make_tokenizer, with_tokenizer
from rqa_ray.retriever.tokenizer import check_model
check_model(spec)
spec = with_tokenizer(spec)
pickle.dump((spec, make_tokenizer(spec).questions(["alpha"])), open({rows!r}, "wb"))
import rqa_ray.training.driver, rqa_ray.corpus.embed, rqa_ray.corpus.encode
assert "sentence_transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"""
import pickle, sys
from rqa_ray.data.token_tables import make_tokenizer
spec, (expected,) = pickle.load(open({rows!r}, "rb"))
(found,) = make_tokenizer(spec).questions(["alpha"])
assert found.tolist() == expected.tolist()
assert "torch" not in sys.modules, "a task that gets the tokenizer need not import torch"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, ("q: ", "d: ")),
        ({"query": "q: ", "document": "", "passage": "p: "}, ("q: ", "")),
        ({"query": None, "passage": "p: "}, ("", "")),
        ({"corpus": "c: ", "sts": "s: "}, ("", "")),
    ],
)
def test_prefixes_are_the_prompts_of_questions_and_of_passages(copy, prompts, expected):
    write(copy / "config_sentence_transformers.json", {"prompts": prompts})
    settings = read_settings(str(copy))
    assert (settings.query_prefix, settings.passage_prefix) == expected
    assert not read_settings(str(copy), query_prefix="", passage_prefix="").has_prefixes


PROMPTS = {"query": "q: ", "document": None, "retrieval": "Find an answer: "}


def test_a_prompt_of_the_model_is_taken_by_its_name(copy):
    write(copy / "config_sentence_transformers.json", {"prompts": PROMPTS})
    settings = read_settings(str(copy), query_prompt_name="retrieval", passage_prompt_name="document")
    assert (settings.query_prefix, settings.passage_prefix) == ("Find an answer: ", "")
    assert read_settings(str(copy), passage_prompt_name="query").passage_prefix == "q: "


def test_a_name_that_is_no_prompt_or_a_name_beside_a_prefix_is_refused(copy):
    assert refusal(copy, query_prompt_name="query").endswith("no such prompt; choose --query_prefix")
    write(copy / "config_sentence_transformers.json", {"prompts": PROMPTS})
    said = refusal(copy, query_prompt_name="retreival")
    assert said.startswith(f"--query_prompt_name retreival: {copy} has no such prompt; did you mean retrieval? ")
    assert said.endswith("choose one of query, document, retrieval")
    said = refusal(copy, passage_prompt_name="document", passage_prefix="p: ")
    assert said == ("--passage_prompt_name document: --passage_prefix 'p: ' gives a prefix too; leave one of them out")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
        ({"pooling_mode_mean_tokens": False}, "mean"),  # as in sentence-transformers
    ],
)
def test_every_way_of_writing_a_pooling_is_read(copy, config, pooling):
    write_modules(copy, "Transformer", "Pooling", **config)
    assert read_settings(str(copy)).pooling == pooling


def test_a_bare_causal_language_model_pools_its_last_token(copy):
    change(copy / "config.json", architectures=["LlamaForCausalLM"])
    assert read_settings(str(copy)).pooling == "lasttoken"
    assert read_settings(str(copy), pooling="mean").pooling == "mean"


def test_settings_of_the_length_of_questions_and_passages_are_kept_within_the_flag(copy):
    write(copy / "sentence_bert_config.json", {"max_seq_length": 60, "query_length": 8, "document_length": 50})
    settings = read_settings(str(copy))
    assert (settings.max_seq_length, settings.query_length, settings.document_length) == (60, 8, 50)
    settings = read_settings(str(copy), max_seq_length=20)
    assert (settings.max_seq_length, settings.query_length, settings.document_length) == (20, 8, 20)
    change(copy / "sentence_bert_config.json", document_length=65)
    assert "its document_length is 65, but its model takes at most 64 tokens" in refusal(copy)


def test_the_other_settings_of_a_folder_are_read(copy):
    write_modules(copy, "Transformer", "Pooling", pooling_mode="mean", include_prompt=False)
    write(copy / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    write(copy / "config_sentence_transformers.json", {"truncate_dim": 16})
    expected = EncoderSettings(max_seq_length=64, include_prompt=False, lower_case=True, truncate_dim=16)
    assert read_settings(str(copy)) == expected
    assert expected.describe() == "mean pooling, cut to 16 dimensions, cosine similarity, up to 64 tokens"


@pytest.mark.parametrize(
    ("own", "flag", "modules", "similarity", "normalize"),
    [
        ("dot", None, ("Pooling", "Normalize"), "dot", True),
        ("dot", None, ("Pooling",), "dot", False),
        ("cosine", None, ("Pooling",), "cosine", True),
        ("cosine", "dot", ("Pooling", "Normalize"), "dot", False),
        ("euclidean", "cosine", ("Pooling",), "cosine", True),
    ],
)
def test_a_similarity_is_never_made_another_one(copy, own, flag, modules, similarity, normalize):
    write_modules(copy, "Transformer", *modules, pooling_mode="mean")
    write(copy / "config_sentence_transformers.json", {"similarity_fn_name": own})
    settings = read_settings(str(copy), similarity=flag)
    assert (settings.similarity, settings.normalize) == (similarity, normalize)


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_a_similarity_that_is_no_product_is_refused(copy, similarity):
    write(copy / "config_sentence_transformers.json", {"similarity_fn_name": similarity})
    assert refusal(copy) == f"{copy}: compares by {similarity}; choose --similarity cosine or dot"


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a SparseEncoder"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "sets query_expansion"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": "max_length"}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"modality_config": {"message": {"method": "forward"}}}, "sets modality_config"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "sets transformer_task"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "its pooling attention is unknown"),
    ],
)
def test_a_setting_that_is_not_honored_is_refused_by_name(copy, file, value, message):
    write_modules(copy, "Transformer", "Pooling", pooling_mode="mean")
    write(copy / file, value)
    assert message in refusal(copy)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("Transformer", "WordWeights", "Pooling"), "has the module WordWeights"),
        (("WordEmbeddings", "Pooling"), "its first module is WordEmbeddings"),
    ],
)
def test_a_module_that_cannot_be_trained_here_is_refused(copy, kinds, message):
    assert message in refusal(write_modules(copy, *kinds))


def test_a_folder_that_is_no_model_folder_is_refused(tmp_path):
    assert "not a model folder" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "not a model folder" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert f"{tmp_path / 'config.json'}: not JSON" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 40}, 40),
        ({"model_type": "roberta", "max_position_embeddings": 42, "pad_token_id": 1}, 40),
        ({"model_type": "xlm-roberta-xl", "max_position_embeddings": 42, "pad_token_id": 1}, 40),
        ({"model_type": "data2vec-text", "max_position_embeddings": 42, "pad_token_id": 1}, 40),
        ({"model_type": "gpt2", "n_positions": 40, "max_position_embeddings": None}, 40),
        ({"model_type": "t5", "n_positions": 40, "max_position_embeddings": None}, None),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"max_position_embeddings": 4096}, 4096),
    ],
)
def test_a_length_beyond_the_models_positions_is_refused(copy, config, positions):
    (copy / "sentence_bert_config.json").unlink()
    change(copy / "config.json", **config)
    assert read_settings(str(copy)).max_seq_length == min(positions or 512, 512)
    if positions:
        assert read_settings(str(copy), max_seq_length=positions).max_seq_length == positions
        assert f"takes at most {positions} tokens" in refusal(copy, max_seq_length=positions + 1)


def test_a_length_that_stands_for_no_limit_is_none(copy):
    write(copy / "sentence_bert_config.json", {})
    write(copy / "modules.json", [])
    write(copy / "tokenizer_config.json", {"model_max_length": int(1e30)})
    change(copy / "config.json", max_position_embeddings=None)
    assert read_settings(str(copy)).max_seq_length == 512


def test_describe_is_one_line_with_the_prefixes_where_there_are_any():
    assert EncoderSettings().describe() == "mean pooling, cosine similarity, up to 512 tokens"
    assert EncoderSettings(query_prefix="q: ").describe().endswith("tokens, prefixes 'q: ' / ''")
