"""Turns texts into token rows: the one place that applies prefixes, special tokens and the length limit."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from rqa_ray.errors import InputError, first_line
from rqa_ray.retriever.encoder_settings import (
    EncoderSettings,
    ModelSpec,
    model_config,
    transformer_folder,
    unused_prompt,
)
from rqa_ray.texts import as_utf8


class TextTokenizer:
    """Tokenizes questions and passages as sentence-transformers does with the encoder settings.

    The result are int32 rows with special tokens, cut at the limit. Where pooling leaves out the tokens of a prefix,
    their ids are stored as complements (`~id`, below 0). `num_texts` counts all texts, `num_truncated` those that were
    cut.
    """

    def __init__(self, tokenizer: Any, settings: EncoderSettings) -> None:
        """Takes a tokenizer of transformers that `load` or `folder.load_encoder` has prepared."""
        self.tokenizer, self.settings = tokenizer, settings
        self.num_truncated = 0
        self.num_texts = 0

    @classmethod
    def load(cls, spec: ModelSpec) -> TextTokenizer:
        """Loads the tokenizer of a model folder, or takes the one that the spec has."""
        if spec.tokenizer:
            return cls(pickle.loads(spec.tokenizer), spec.settings)
        from transformers import AutoTokenizer  # imports torch

        tokenizer = AutoTokenizer.from_pretrained(
            str(transformer_folder(spec.folder)), trust_remote_code=spec.trust_remote_code
        )
        if spec.settings.lower_case:
            _lower_case(tokenizer)
        return cls(tokenizer, spec.settings)

    def questions(self, texts: Sequence[str], instructions: Sequence[str | None] | None = None) -> list[np.ndarray]:
        """Returns the token rows of questions, with the query prefix.

        `instructions` has a text for each question that takes the place of the query prefix, or None.
        """
        prefix = self.settings.query_prefix
        prefixes = [prefix if one is None else one for one in instructions or [None] * len(texts)]
        return self._rows(texts, prefixes, self.settings.query_length)

    def passages(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token rows of passages, with the passage prefix."""
        return self._rows(texts, [self.settings.passage_prefix] * len(texts), self.settings.document_length)

    def _rows(self, texts: Sequence[str], prefixes: Sequence[str], length: int | None) -> list[np.ndarray]:
        if not texts:
            return []
        limit = length or self.settings.max_seq_length
        batch = self._tokenize([as_utf8(prefix + text) for prefix, text in zip(prefixes, texts, strict=True)], limit)
        rows = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"]]
        self.num_texts += len(rows)
        if batch.encodings is not None:
            self.num_truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
        else:
            self.num_truncated += sum(len(row) >= limit for row in rows)
        if not self.settings.include_prompt:
            lengths = {prefix: self._prefix_length(prefix) if prefix else 0 for prefix in set(prefixes)}
            for row, prefix in zip(rows, prefixes, strict=True):
                row[: lengths[prefix]] = ~row[: lengths[prefix]]
        return rows

    def _prefix_length(self, prefix: str) -> int:
        """Counts the tokens of a prefix as sentence-transformers does, without a special token at its end."""
        (row,) = self._tokenize([prefix], self.settings.max_seq_length)["input_ids"]
        return len(row) - (row[-1] in self.tokenizer.all_special_ids)

    def _tokenize(self, texts: list[str], limit: int) -> Any:
        return self.tokenizer(
            texts, truncation=True, max_length=limit, return_attention_mask=False, return_token_type_ids=False
        )


def _lower_case(tokenizer: Any) -> None:
    """Makes a tokenizer turn texts into lower case, as sentence-transformers' `do_lower_case` does."""
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def check_model(spec: ModelSpec) -> None:
    """Raises InputError if a model folder has no tokenizer, no weights, or more tokens than embeddings."""
    folder = transformer_folder(spec.folder)
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise InputError(f"{spec.folder}: not a model folder, it has no *.safetensors or pytorch_model.bin")
    try:
        tokenizer = TextTokenizer.load(spec).tokenizer
    except Exception as error:  # transformers raises many kinds of errors
        raise InputError(f"{spec.folder}: its tokenizer cannot be loaded: {first_line(error)}") from None
    # transformers makes up an empty tokenizer if the files are missing
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{spec.folder}: its tokenizer knows no words; tokenizer.json or the vocabulary is missing")
    embeddings = model_config(spec.folder).get("vocab_size")
    if embeddings and len(tokenizer) > embeddings:
        raise InputError(
            f"{spec.folder}: its tokenizer knows {len(tokenizer):,} tokens, but its model has embeddings for "
            f"{embeddings:,}; pass a folder whose tokenizer belongs to its model"
        )


def prefix_note(name: str, spec: ModelSpec) -> str | None:
    """Returns a warning if a model seems to be trained with prefixes that are not set; else None."""
    unused = unused_prompt(spec.folder)
    if unused and not spec.settings.passage_prefix:
        return (
            f"warning: its prompt {unused[0]!r} goes before no passage, as in sentence-transformers, which takes "
            f"'document'; if it was trained with this prompt: --passage_prefix {unused[1]!r}"
        )
    wanted = {"e5": "--query_prefix 'query: ' --passage_prefix 'passage: '", "bge": "--query_prefix 'Represent ...: '"}
    for family, flags in wanted.items():
        if family in name.lower().replace("/", "-").split("-") and not spec.settings.has_prefixes:
            return f"warning: {family} models were trained with prefixes and none is set; for example {flags}"
    return None
