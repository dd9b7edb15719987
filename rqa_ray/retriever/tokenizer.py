"""Texts to token rows: the one place where prefixes, special tokens and the length limit are applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rqa_ray.errors import InputError, first_line
from rqa_ray.retriever.encoder_settings import EncoderSettings, ModelSpec, model_config, transformer_folder
from rqa_ray.texts import as_utf8


class TextTokenizer:
    """Tokenizes questions and passages as sentence-transformers does with the encoder settings.

    Rows come back as int32 arrays with special tokens, cut at the limit of tokens. A token that pooling has to leave
    out, since it belongs to a prefix, is the complement of its id (`~id`, below 0). `num_truncated` counts the texts
    that were longer, `num_texts` all of them.
    """

    def __init__(self, tokenizer: Any, settings: EncoderSettings) -> None:
        """`tokenizer` is transformers', made ready by `load` or `folder.load_encoder`."""
        self.tokenizer, self.settings = tokenizer, settings
        self.num_truncated = 0
        self.num_texts = 0

    @classmethod
    def load(cls, spec: ModelSpec) -> TextTokenizer:
        """The tokenizer of a model folder; needs neither torch nor sentence-transformers."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            str(transformer_folder(spec.folder)), trust_remote_code=spec.trust_remote_code
        )
        if spec.settings.lower_case:
            _lower_case(tokenizer)
        return cls(tokenizer, spec.settings)

    def questions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token rows of questions, with the query prefix."""
        return self._rows(texts, self.settings.query_prefix, self.settings.query_length)

    def passages(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token rows of passages, with the passage prefix."""
        return self._rows(texts, self.settings.passage_prefix, self.settings.document_length)

    def _rows(self, texts: Sequence[str], prefix: str, length: int | None) -> list[np.ndarray]:
        if not texts:
            return []
        limit = length or self.settings.max_seq_length
        batch = self._tokenize([as_utf8(prefix + text) for text in texts], limit)
        rows = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"]]
        self.num_texts += len(rows)
        if batch.encodings is not None:
            self.num_truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
        else:
            self.num_truncated += sum(len(row) >= limit for row in rows)
        if prefix and not self.settings.include_prompt:
            number = self._prefix_length(prefix)
            for row in rows:
                row[:number] = ~row[:number]
        return rows

    def _prefix_length(self, prefix: str) -> int:
        """Tokens of a prefix, without a special one at its end; as sentence-transformers counts them."""
        (row,) = self._tokenize([prefix], self.settings.max_seq_length)["input_ids"]
        return len(row) - (row[-1] in self.tokenizer.all_special_ids)

    def _tokenize(self, texts: list[str], limit: int) -> Any:
        return self.tokenizer(
            texts, truncation=True, max_length=limit, return_attention_mask=False, return_token_type_ids=False
        )


def _lower_case(tokenizer: Any) -> None:
    """What sentence-transformers' `do_lower_case` does."""
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def check_model(spec: ModelSpec) -> None:
    """Raises InputError where a model folder has no tokenizer or no weights, or more tokens than embeddings."""
    folder = transformer_folder(spec.folder)
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise InputError(f"{spec.folder}: not a model folder, it has no *.safetensors or pytorch_model.bin")
    try:
        tokenizer = TextTokenizer.load(spec).tokenizer
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{spec.folder}: its tokenizer cannot be loaded: {first_line(error)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up where there are no files
        raise InputError(f"{spec.folder}: its tokenizer knows no words; tokenizer.json or the vocabulary is missing")
    embeddings = model_config(spec.folder).get("vocab_size")
    if embeddings and len(tokenizer) > embeddings:
        raise InputError(
            f"{spec.folder}: its tokenizer knows {len(tokenizer):,} tokens, but its model has embeddings for "
            f"{embeddings:,}; pass a folder whose tokenizer belongs to its model"
        )


def prefix_note(name: str, settings: EncoderSettings) -> str | None:
    """A warning where a model of that name was trained with prefixes and has none."""
    wanted = {"e5": "--query_prefix 'query: ' --passage_prefix 'passage: '", "bge": "--query_prefix 'Represent ...: '"}
    for family, flags in wanted.items():
        if family in name.lower().replace("/", "-").split("-") and not settings.has_prefixes:
            return f"warning: {family} models were trained with prefixes and none is set; see {flags}"
    return None
