"""Embeds texts or token rows without a graph: the one embedder of training, jobs and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rqa_ray.retriever.agreement import check_against_sentence_transformers
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.sharding import in_step
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches
from rqa_ray.retriever.tokenizer import TextTokenizer, check_model
from rqa_ray.texts import html_table

OnBatch = Callable[[int], None]

# More tokens make nothing faster: on CPUs the activations leave the cache, and GPUs are busy already.
TOKENS_PER_BATCH = {"cpu": 2_000, "cuda": 32_768}
# Texts that are tokenized at a time, where the device leaves the processor free for it: enough for many token batches.
TEXTS_AT_A_TIME = {"cuda": 8_192}
MOST_BATCHES_AT_A_TIME = 4  # on CPUs, where Python's part of the work (about 5%) runs in one thread at a time


@dataclass
class EmbedOptions:
    """How rows are cut into token batches, and in which precision they are computed."""

    pad_id: int
    max_tokens: int
    max_rows: int | None = None
    packed: bool = False
    mixed_precision: torch.dtype | None = None

    @classmethod
    def for_device(cls, encoder: Encoder) -> EmbedOptions:
        """Returns the options that suit the device of the encoder."""
        device = next(encoder.parameters()).device
        max_tokens = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])
        return cls(encoder.tokenizer.pad_token_id, max_tokens, packed=encoder.packs_here)


class Embedder:
    """Turns questions, passages or token rows into (n, D) fp32 embeddings, in order, on the encoder's device.

    `notes` are warnings for the user, one line each.

        embedder = Embedder.load("intfloat/e5-base-v2")
        scores = embedder.questions(["who wrote it?"]) @ embedder.passages(["A book by Melville.", "A city."]).T
    """

    def __init__(self, encoder: Encoder, options: EmbedOptions | None = None) -> None:
        self.encoder = encoder
        self.options = options or EmbedOptions.for_device(encoder)
        self.tokenizer = TextTokenizer(encoder.tokenizer, encoder.settings)
        self.notes: list[str] = []

    @classmethod
    def load(cls, model: str | ModelSpec, device: str | torch.device | None = None, bf16: bool = False) -> Embedder:
        """Loads the embedder of a model: a folder, an installed package, a hub name, or a `ModelSpec`.

        The embedder runs on a GPU where there is one. With `bf16`, the weights are in bf16.

        Raises:
            InputError: there is no such model, the model cannot be used, or its embeddings differ from those of
                sentence-transformers.
        """
        if isinstance(model, str):
            folder = find_model_folder(model)
            model = ModelSpec(folder, read_settings(folder))
            check_model(model)
        encoder = load_encoder(model.folder, model.settings, None, model.trust_remote_code, bf16).eval()
        encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        notes = check_against_sentence_transformers(encoder)
        embedder = cls(encoder)
        embedder.notes = notes
        return embedder

    def _repr_html_(self) -> str:
        settings = self.encoder.settings
        device = next(self.encoder.parameters()).device
        rows: list[list[Any]] = [
            ["dimensions", self.encoder.dimensions],
            ["settings", settings.describe()],
            ["device", device],
        ]
        return html_table(["embedder", ""], rows, "; ".join(self.notes))

    def questions(self, texts: Sequence[str], on_batch: OnBatch = lambda num_rows: None) -> torch.Tensor:
        """Returns (n, D) embeddings of n questions, with the model's query prefix."""
        return self._texts(self.tokenizer.questions, texts, on_batch)

    def passages(self, texts: Sequence[str], on_batch: OnBatch = lambda num_rows: None) -> torch.Tensor:
        """Returns (n, D) embeddings of n passages, with the model's passage prefix."""
        return self._texts(self.tokenizer.passages, texts, on_batch)

    def rows(self, rows: Sequence[np.ndarray], on_batch: OnBatch = lambda num_rows: None) -> torch.Tensor:
        """Returns (n, D) embeddings of n token rows.

        Calls `on_batch` with the number of rows of each finished token batch. If the encoder is sharded, all ranks
        have to call this method together, also a rank without rows.
        """
        return self._embed(*self._cut(rows), on_batch)

    def _texts(
        self, tokenize: Callable[[Sequence[str]], list[np.ndarray]], texts: Sequence[str], on_batch: OnBatch
    ) -> torch.Tensor:
        """Tokenizes and embeds texts; a GPU embeds some texts while the next ones are tokenized."""
        at_a_time = TEXTS_AT_A_TIME.get(self._device.type, len(texts))
        if len(texts) <= at_a_time or self.encoder.is_sharded:
            return self.rows(tokenize(texts), on_batch)

        def cut(start: int) -> tuple[list[TokenBatch], torch.Tensor]:
            return self._cut(tokenize(texts[start : start + at_a_time]))

        parts = []
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(cut, 0)
            for start in range(at_a_time, len(texts) + at_a_time, at_a_time):
                token_batches, order = ahead.result()
                if start < len(texts):
                    ahead = pool.submit(cut, start)
                parts.append(self._embed(token_batches, order, on_batch))
        return torch.cat(parts)

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def _cut(self, rows: Sequence[np.ndarray]) -> tuple[list[TokenBatch], torch.Tensor]:
        options = self.options
        return length_sorted_batches(rows, options.max_tokens, options.pad_id, options.packed, options.max_rows)

    def _embed(self, token_batches: list[TokenBatch], order: torch.Tensor, on_batch: OnBatch) -> torch.Tensor:
        """Returns the embeddings of token batches in the order of the rows from which these were cut."""
        encoder, options, device = self.encoder, self.options, self._device
        num_own = len(token_batches)
        if encoder.is_sharded:
            token_batches = in_step(token_batches, options.pad_id, options.packed, device)
        mixed = options.mixed_precision

        def embed(token_batch: TokenBatch) -> torch.Tensor:
            # Autocast would keep copies of all layers until the end of a forward pass.
            caches = not encoder.is_sharded
            precision = torch.autocast(device.type, mixed or torch.bfloat16, mixed is not None, cache_enabled=caches)
            with encoder.without_graph(), precision:
                return encoder.embed([token_batch.to(device)])

        parts = [torch.empty(0, encoder.dimensions, device=device)]
        # torch.compile works in one thread, and ranks are in step in one thread
        in_threads = device.type == "cpu" and not (encoder.is_compiled or encoder.is_sharded)
        for part in _in_threads(embed, token_batches) if in_threads else map(embed, token_batches):
            if len(parts) <= num_own:
                parts.append(part)
                on_batch(len(part))
        return torch.cat(parts)[order.to(device)]


def _in_threads(
    embed: Callable[[TokenBatch], torch.Tensor], token_batches: list[TokenBatch]
) -> Iterator[torch.Tensor]:
    """Computes one token batch in each thread, because the operations of a token batch are too small to share.

    The result does not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    at_a_time = min(threads, MOST_BATCHES_AT_A_TIME)
    if at_a_time == 1 or len(token_batches) <= at_a_time:
        yield from map(embed, token_batches)
        return
    pool = ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(threads // at_a_time,))
    try:
        yield from pool.map(embed, token_batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a thread's setting becomes the default of later threads
