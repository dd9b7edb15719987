"""The encoder: a SentenceTransformer whose transformer runs our forward pass over token batches without padding.

The modules after the transformer (pooling, Dense, Normalize ...) are its head. They are sentence-transformers' own
modules, called on the unpacked token embeddings of a token batch.

Shapes: B texts in a token batch, L tokens in its longest text, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rqa_ray.errors import first_line
from rqa_ray.retriever import attention
from rqa_ray.retriever.dropout import replace_dropout
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.interrupts import Interrupts
from rqa_ray.retriever.lean_graph import is_cast_of_weight, lean_graph
from rqa_ray.retriever.matryoshka import cut
from rqa_ray.retriever.model_types import is_causal, model_type
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches

if TYPE_CHECKING:  # only processes that load a model import it
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def unpack(packed: torch.Tensor, token_batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpacks the tokens (1, T, D) of a packed token batch to (B, L, D).

    Also returns the mask (B, L) of real tokens.
    """
    assert token_batch.places is not None
    shape = len(token_batch), token_batch.lengths[-1]
    tokens = packed.new_zeros(shape[0] * shape[1], packed.shape[-1]).index_copy(0, token_batch.places, packed[0])
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=packed.device).index_fill(
        0, token_batch.places, 1
    )
    return tokens.view(*shape, -1), mask.view(shape)


class Encoder(nn.Module):
    """Turns token batches into embeddings.

    One call takes a list of token batches, so that DDP sees one call a step.
    """

    own_dropout: dict[str, float]  # the dropout of the transformer's config that `--dropout` replaced

    def __init__(self, model: SentenceTransformer, settings: EncoderSettings) -> None:
        super().__init__()
        self.own_dropout = {}
        self.model = model
        self.settings = settings
        self.interrupts = Interrupts()
        self.is_compiled = False
        self.is_sharded = False  # whether `sharding.shard` has cut the parameters
        transformer = self.transformer
        if getattr(transformer, "pooler", None) is not None:
            # The pooler stays, so that the saved folder has all of its keys. Nothing uses it, so DDP must not wait for
            # its gradient.
            transformer.pooler.requires_grad_(False)
        replace_dropout(model)
        for module in self.head:
            module.float()  # the head computes in fp32, also where the transformer does not
        config: Any = transformer.config
        kind = model_type(config.model_type)
        is_transformers_own = type(transformer).__module__.startswith("transformers.")
        # Whether the encoder takes packed token batches. A BERT with `is_decoder` is causal against the table.
        self.can_pack = kind.packed and is_transformers_own and not getattr(config, "is_decoder", False)
        if self.can_pack:
            transformer.set_attn_implementation(attention.NAME)
        self.is_causal = is_causal(config)
        all_eps = {module.eps for module in transformer.modules() if isinstance(module, nn.LayerNorm)}
        self.norm_eps = all_eps.pop() if len(all_eps) == 1 else None
        self.window: int | None = config.sliding_window if kind.window else None
        self.first_position = config.pad_token_id + 1 if kind.positions_after_padding else 0

    @property
    def transformer(self) -> Any:
        """The transformers model."""
        return self.model[0].model

    @property
    def head(self) -> list[nn.Module]:
        """The modules after the transformer."""
        return list(self.model.children())[1:]

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, which is saved with the model."""
        return self.model.tokenizer

    @property
    def dimensions(self) -> int:
        """Number of dimensions (D) of the embeddings."""
        dimensions = self.model.get_embedding_dimension()
        assert dimensions is not None
        return min(dimensions, self.settings.truncate_dim or dimensions)

    def forward(
        self,
        token_batches: Sequence[TokenBatch],
        seeds: Sequence[int] | None = None,
        before_backward: Callable[..., None] | None = None,
    ) -> torch.Tensor:
        """Returns (rows, D) fp32 embeddings of all rows of all token batches, in order.

        `seeds` has one seed for each token batch, which is set before its forward pass. The dropout masks depend on
        this seed alone, so gradient caching repeats them, and so does a resumed run. `before_backward` is called
        before the backward pass of each token batch, with the gradient of its embeddings and its `index`.
        """
        embeddings = []
        for index, (token_batch, inputs) in enumerate(zip(token_batches, self._inputs(token_batches), strict=True)):
            self.interrupts.look()
            if seeds is not None:
                torch.manual_seed(seeds[index])
            with self._lean_graph():
                tokens = self.transformer(**inputs).last_hidden_state
            tokens, mask = (
                (tokens, token_batch.attention_mask)
                if token_batch.attention_mask is not None
                else unpack(tokens, token_batch)
            )
            embeddings.append(self._pool(tokens.float(), mask, token_batch.prompt_lengths))
            if before_backward:
                embeddings[-1].register_hook(partial(before_backward, index=index))
        return torch.cat(embeddings)

    embed = forward  # the Trainer adds mixed precision to `forward`, and not to this name

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor, prompt_lengths: list[int] | None) -> torch.Tensor:
        """Returns (B, D) from token embeddings (B, L, D) and their mask (B, L).

        Pools rows of the same prompt length together.
        """
        lengths = sorted(set(prompt_lengths or [0]))
        if len(lengths) == 1:
            return self._head(tokens, mask, lengths[0])
        of_rows = torch.tensor(prompt_lengths, device=tokens.device)
        groups = [(of_rows == length).nonzero()[:, 0] for length in lengths]
        parts = [self._head(tokens[rows], mask[rows], length) for rows, length in zip(groups, lengths, strict=True)]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _head(self, tokens: torch.Tensor, mask: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """Returns (B, D) fp32 embeddings; pooling leaves out the first `prompt_length` tokens of each row."""
        features: dict[str, Any] = {"token_embeddings": tokens, "attention_mask": mask, "prompt_length": prompt_length}
        with torch.autocast(tokens.device.type, enabled=False):
            for module in self.head:
                features = module(features)
            embeddings = features["sentence_embedding"]
            if self.settings.truncate_dim:
                embeddings = cut(embeddings, self.settings.truncate_dim, self.settings.similarity)
        return embeddings

    def _inputs(self, token_batches: Sequence[TokenBatch]) -> Iterator[dict[str, Any]]:
        """Yields the transformer's arguments for each token batch."""
        if token_batches and token_batches[0].attention_mask is None:
            # One look-up for all token batches, because each look-up has a gradient of the size of the vocabulary.
            vectors = self.transformer.get_input_embeddings()(
                torch.cat([token_batch.input_ids for token_batch in token_batches], dim=1)
            )
            parts = vectors.split([token_batch.num_tokens for token_batch in token_batches], dim=1)
            for token_batch, part in zip(token_batches, parts, strict=True):
                assert token_batch.position_ids is not None
                positions = token_batch.position_ids + self.first_position
                packed = attention.packed_arguments(token_batch, self.is_causal)
                yield {"inputs_embeds": part, "position_ids": positions, **packed}
        else:
            yield from (
                {"input_ids": token_batch.input_ids, "attention_mask": token_batch.attention_mask}
                for token_batch in token_batches
            )

    def _lean_graph(self) -> AbstractContextManager[None]:
        """Lets the transformer keep fewer activations, unless it is compiled or checkpoints its activations.

        A compiled transformer chooses what it keeps. A checkpoint forgets what the next layer would be computed from.
        """
        if self.is_compiled or getattr(self.transformer, "is_activation_checkpointing", False):
            return nullcontext()
        return lean_graph(self.norm_eps, not self.is_sharded)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turns on activation checkpointing in the transformer.

        The Trainer calls it for `--gradient_checkpointing`.
        """
        self.transformer.activation_checkpointing_enable(**kwargs)

    @contextmanager
    def without_graph(self) -> Iterator[None]:
        """Lets no forward pass in a context keep a graph."""
        # FSDP gathers layers into memory that training uses too, and training cannot use tensors of inference mode.
        with torch.inference_mode(not self.is_sharded), torch.no_grad():
            yield

    @property
    def packs_here(self) -> bool:
        """Whether the encoder takes packed token batches on its device; GPUs are tried out."""
        return self.can_pack and (next(self.parameters()).device.type == "cpu" or self.packing_works())

    def packing_works(self) -> bool:
        """Tries out whether packed token batches give the same embeddings as padded ones on this device."""
        device = next(self.parameters()).device
        lengths = [7, 20, 64]
        if self.window:  # a text that is longer than the window, if texts may be
            lengths.append(min(2 * self.window, self.settings.max_seq_length))
        rows = [np.arange(5, 5 + length) % 100 for length in lengths]
        was_training = self.training
        self.eval()
        try:
            (padded, places), (packed, order) = (
                length_sorted_batches(rows, 100, 0, layout) for layout in (False, True)
            )
            expected = self.embed([token_batch.to(device) for token_batch in padded])[places]
            found = self.embed([token_batch.to(device) for token_batch in packed])[order]
            found.sum().backward()
            with self.without_graph():
                self.embed([token_batch.to(device) for token_batch in packed])
            return bool(nn.functional.cosine_similarity(found, expected).min() > 0.999)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no kernel for this device, type or head size
            logger.warning("texts are padded: packed ones do not run on %s (%s)", device, first_line(error))
            return False
        finally:
            self.zero_grad()
            self.train(was_training)

    def graph_bytes(self, token_batch: TokenBatch) -> int:
        """Measures how much memory autograd keeps between the forward and backward pass of a token batch (bytes).

        Leaves out the weights, and the copies that mixed precision makes of weights once for all token batches.
        """
        kept = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            whole = tensor if tensor._base is None else tensor._base
            if not isinstance(whole, nn.Parameter) and not is_cast_of_weight(whole):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            embeddings = self.embed([token_batch], [0])
        del embeddings  # the graph had to live until here: else freed memory would be used again and counted twice
        return sum(kept.values())
