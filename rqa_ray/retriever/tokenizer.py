"""Texts to token rows: the one place where prefixes, special tokens and the length limit are applied."""

from collections.abc import Sequence

import numpy as np
from transformers import AutoTokenizer

from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import EncoderSettings, transformer_folder
from rqa_ray.texts import as_utf8


class TextTokenizer:
    """Tokenises questions and passages as the encoder settings say.

    Rows come back as int32 arrays with special tokens, cut at `max_seq_length` tokens. `num_truncated` counts the
    texts that were longer, `num_texts` all of them.
    """

    def __init__(self, folder: str, settings: EncoderSettings, trust_remote_code: bool = False) -> None:
        self.settings = settings
        path = str(transformer_folder(folder))
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        self.tokenizer.truncation_side = "right"
        self.num_truncated = 0
        self.num_texts = 0

    def questions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token rows of questions, with the query prefix."""
        return self._encode([self.settings.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token rows of passages, with the passage prefix."""
        return self._encode([self.settings.passage_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        texts = [as_utf8(text) for text in texts]
        limit = self.settings.max_seq_length
        batch = self.tokenizer(
            texts, truncation=True, max_length=limit, return_attention_mask=False, return_token_type_ids=False
        )
        rows = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"]]
        self.num_texts += len(rows)
        if batch.encodings is not None:
            self.num_truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
        else:
            self.num_truncated += sum(len(row) >= limit for row in rows)
        return rows


def check_model(model_folder: str, encoder: EncoderSettings, trust_remote_code: bool) -> None:
    """Raises InputError where a model folder has no tokenizer or no weights."""
    folder = transformer_folder(model_folder)
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise InputError(f"{model_folder}: not a model folder, it has no *.safetensors or pytorch_model.bin")
    try:
        TextTokenizer(model_folder, encoder, trust_remote_code)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{model_folder}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None


def prefix_note(name: str, settings: EncoderSettings) -> str | None:
    """A warning where a model of that name was trained with prefixes and has none."""
    wanted = {"e5": "--query_prefix 'query: ' --passage_prefix 'passage: '", "bge": "--query_prefix 'Represent ...: '"}
    for family, flags in wanted.items():
        if family in name.lower().replace("/", "-").split("-") and not settings.has_prefixes:
            return f"warning: {family} models were trained with prefixes and none is set; see {flags}"
    return None
