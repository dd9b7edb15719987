"""Prefixes, special tokens, the length limit and its counts, and texts that are hard for tokenizers."""

import shutil

import numpy as np
import pytest

from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer, prefix_note
from tests.models import save_tokenizer


@pytest.fixture
def tokenizer(tiny_model) -> TextTokenizer:
    return TextTokenizer.load(ModelSpec(tiny_model, EncoderSettings(max_seq_length=8)))


def words(tokenizer: TextTokenizer, row: np.ndarray) -> list[str]:
    return tokenizer.tokenizer.convert_ids_to_tokens(row.tolist())


def test_rows_are_int32_with_special_tokens(tokenizer):
    (row,) = tokenizer.passages(["ab c"])
    assert row.dtype == np.int32
    assert words(tokenizer, row) == ["[CLS]", "a", "##b", "c", "[SEP]"]


def test_questions_and_passages_have_their_own_prefixes(tiny_model):
    settings = EncoderSettings(max_seq_length=16, query_prefix="q: ", passage_prefix="p: ")
    tokenizer = TextTokenizer.load(ModelSpec(tiny_model, settings))
    (question,), (passage,) = tokenizer.questions(["x"]), tokenizer.passages(["x"])
    assert words(tokenizer, question) == ["[CLS]", "q", ":", "x", "[SEP]"]
    assert words(tokenizer, passage) == ["[CLS]", "p", ":", "x", "[SEP]"]


def test_only_texts_beyond_the_limit_are_cut_and_counted(tokenizer):
    # 6 tokens fit beside the two special ones.
    rows = tokenizer.passages(["a b c d e", "a b c d e f", "a b c d e f g", "abcdefghij"])
    assert [len(row) for row in rows] == [7, 8, 8, 8]
    assert words(tokenizer, rows[2]) == ["[CLS]", *"abcdef", "[SEP]"]
    assert (tokenizer.num_texts, tokenizer.num_truncated) == (4, 2)


def test_counts_add_up_over_calls_and_the_prefix_counts_as_text(tiny_model):
    tokenizer = TextTokenizer.load(ModelSpec(tiny_model, EncoderSettings(max_seq_length=8, query_prefix="q: ")))
    tokenizer.passages(["a b c d e f"])
    tokenizer.questions(["a b c d e f", "a b c d"])
    assert (tokenizer.num_texts, tokenizer.num_truncated) == (3, 1)


def test_the_start_is_cut_where_the_folder_says_so(tmp_path):
    save_tokenizer(tmp_path, truncation_side="left")
    tokenizer = TextTokenizer.load(ModelSpec(str(tmp_path), EncoderSettings(max_seq_length=4)))
    assert words(tokenizer, tokenizer.passages(["a b c"])[0]) == ["[CLS]", "b", "c", "[SEP]"]


def test_an_empty_text_is_its_special_tokens_and_no_texts_are_no_rows(tokenizer):
    rows = tokenizer.questions(["", " \n"])
    assert [words(tokenizer, row) for row in rows] == [["[CLS]", "[SEP]"]] * 2
    assert tokenizer.questions([]) == []
    assert (tokenizer.num_texts, tokenizer.num_truncated) == (2, 0)


def test_tokens_of_a_prefix_that_is_not_pooled_are_marked(tiny_model):
    settings = EncoderSettings(max_seq_length=6, query_prefix="q: ", include_prompt=False)
    tokenizer = TextTokenizer.load(ModelSpec(tiny_model, settings))
    plain, passage = tokenizer.passages(["q: ab"])[0], tokenizer.passages(["ab"])[0]
    (question,) = tokenizer.questions(["ab"])
    assert (question < 0).tolist() == [True, True, True, False, False, False]  # [CLS] q : a ##b [SEP]
    assert np.where(question < 0, ~question, question).tolist() == plain.tolist()
    assert (passage >= 0).all()


def test_an_instruction_takes_the_place_of_the_query_prefix(tiny_model):
    settings = EncoderSettings(max_seq_length=16, query_prefix="q: ", include_prompt=False)
    tokenizer = TextTokenizer.load(ModelSpec(tiny_model, settings))
    rows = tokenizer.questions(["x", "x", "x"], [None, "ab: ", ""])
    assert [words(tokenizer, np.where(row < 0, ~row, row)) for row in rows] == [
        ["[CLS]", "q", ":", "x", "[SEP]"],
        ["[CLS]", "a", "##b", ":", "x", "[SEP]"],
        ["[CLS]", "x", "[SEP]"],
    ]
    assert [(row < 0).sum() for row in rows] == [3, 4, 0]  # the tokens that pooling leaves out


def test_questions_and_passages_may_have_limits_of_their_own_and_be_lower_cased(tmp_path):
    save_tokenizer(tmp_path, do_lower_case=False)
    settings = EncoderSettings(max_seq_length=8, query_length=4, document_length=5, lower_case=True)
    tokenizer = TextTokenizer.load(ModelSpec(str(tmp_path), settings))
    assert words(tokenizer, tokenizer.questions(["A B C D"])[0]) == ["[CLS]", "a", "b", "[SEP]"]
    assert words(tokenizer, tokenizer.passages(["a b c d"])[0]) == ["[CLS]", "a", "b", "c", "[SEP]"]


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_rows_are_those_of_sentence_transformers(minilm, prefix):
    from sentence_transformers import SentenceTransformer

    texts = ["", " a\n\tb ", "Straße", "検索 モデル", "🙂", "x" * 300, "word " * 400, "[CLS] <s> </s> [MASK]"]
    tokenizer = TextTokenizer.load(ModelSpec(minilm, read_settings(minilm, query_prefix=prefix)))
    model = SentenceTransformer(minilm, device="cpu", prompts={"query": prefix})
    for row, text in zip(tokenizer.questions(texts), texts, strict=True):
        assert row.tolist() == model.preprocess([text], prompt=prefix, task="query")["input_ids"][0].tolist()


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800", "a\x00b", "\U0001f600", "\u202e\ufeff"])
def test_no_text_breaks_it(tokenizer, text):
    (row,) = tokenizer.passages([text])
    assert words(tokenizer, row)[0] == "[CLS]" and words(tokenizer, row)[-1] == "[SEP]"


def test_a_lone_surrogate_becomes_a_question_mark_and_the_rest_stays(tokenizer):
    (row,) = tokenizer.passages(["a \udfff b"])
    assert words(tokenizer, row) == ["[CLS]", "a", "?", "b", "[SEP]"]


def test_the_tokenizer_of_a_model_in_a_subfolder_is_found(tiny_model, tmp_path):
    # The layout of sentence-transformers before 0.4.
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]'
    )
    (tmp_path / "0_Transformer").symlink_to(tiny_model)
    tokenizer = TextTokenizer.load(ModelSpec(str(tmp_path), EncoderSettings(max_seq_length=8)))
    assert words(tokenizer, tokenizer.passages(["a"])[0]) == ["[CLS]", "a", "[SEP]"]


def test_prefixes_that_a_model_seems_to_be_trained_with_are_told_if_none_is_set(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"document": "", "passage": "p: "}}')
    spec = ModelSpec(str(folder), read_settings(str(folder)))
    said = prefix_note("mine", spec) or ""
    assert said.startswith("warning: its prompt 'passage' goes before no passage, as in sentence-transformers")
    assert said.endswith("--passage_prefix 'p: '")
    assert prefix_note("mine", ModelSpec(str(folder), read_settings(str(folder), passage_prefix="p: "))) is None
    assert "for example --query_prefix" in (prefix_note("a/e5-x", ModelSpec(tiny_model, EncoderSettings())) or "")
    assert prefix_note("a/model", ModelSpec(tiny_model, EncoderSettings())) is None
