"""The encoder: a transformer, pooling, and unit length where the similarity is cosine.

Shapes: B texts in a token batch, L tokens of its longest text, D dimensions.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rqa_ray.retriever import attention
from rqa_ray.retriever.dropout import replace_dropout
from rqa_ray.retriever.encoder_settings import POSITION_OFFSETS, EncoderSettings
from rqa_ray.retriever.interrupts import Interrupts
from rqa_ray.retriever.token_batches import TokenBatch, length_sorted_batches

logger = logging.getLogger(__name__)


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[:, :, None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _cls(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens[:, 0]


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "last": _last,
    "max": _max,
}


def unpack(packed: torch.Tensor, token_batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, T, D) of a packed token batch as (B, L, D), and the mask (B, L) that says which are tokens."""
    assert token_batch.places is not None
    shape = len(token_batch), token_batch.lengths[-1]
    tokens = packed.new_zeros(shape[0] * shape[1], packed.shape[-1]).index_copy(0, token_batch.places, packed[0])
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=packed.device).index_fill(
        0, token_batch.places, 1
    )
    return tokens.view(*shape, -1), mask.view(shape)


class Encoder(nn.Module):
    """Token batches to embeddings. One forward over a list of token batches, so that DDP sees one forward a step."""

    transformer: Any
    own_dropout: dict[str, float]  # what an override replaced in the transformer's config

    def __init__(self, transformer: nn.Module, settings: EncoderSettings) -> None:
        super().__init__()
        self.own_dropout = {}
        self.transformer = transformer
        self.settings = settings
        self.interrupts = Interrupts()
        self.is_compiled = False
        if getattr(transformer, "pooler", None) is not None:
            # Kept, so that the saved folder has the keys that it came with; unused, so DDP must not wait for it.
            transformer.pooler.requires_grad_(False)
        replace_dropout(transformer)
        config: Any = transformer.config
        is_known = config.model_type in attention.MODEL_TYPES and type(transformer).__module__.startswith(
            "transformers."
        )
        if is_known:
            transformer.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self.can_pack = is_known  # whether it takes packed token batches
        self.first_position = config.pad_token_id + 1 if config.model_type in POSITION_OFFSETS else 0

    def forward(
        self,
        token_batches: Sequence[TokenBatch],
        seeds: Sequence[int] | None = None,
        before_backward: Callable[..., None] | None = None,
    ) -> torch.Tensor:
        """(rows, D) fp32 embeddings of all rows of all token batches, in order.

        With `seeds`, one for each token batch, the random state is set before each: its dropout masks depend on the
        seed alone, so the cached step replays them and a resumed run repeats them. `before_backward` is called with
        the gradient of each token batch's embeddings and `index`, before its backward pass.
        """
        return self.embed(token_batches, seeds, before_backward)

    def embed(
        self,
        token_batches: Sequence[TokenBatch],
        seeds: Sequence[int] | None = None,
        before_backward: Callable[..., None] | None = None,
    ) -> torch.Tensor:
        """`forward` without the mixed precision that the Trainer wraps around that name."""
        embeddings = []
        for index, (token_batch, inputs) in enumerate(zip(token_batches, self._inputs(token_batches), strict=True)):
            self.interrupts.look()
            if seeds is not None:
                torch.manual_seed(seeds[index])
            tokens = self.transformer(**inputs).last_hidden_state
            tokens, mask = (
                (tokens, token_batch.attention_mask)
                if token_batch.attention_mask is not None
                else unpack(tokens, token_batch)
            )
            pooled = POOLINGS[self.settings.pooling](tokens.float(), mask)
            embeddings.append(nn.functional.normalize(pooled, dim=-1) if self.settings.normalize else pooled)
            if before_backward:
                embeddings[-1].register_hook(partial(before_backward, index=index))
        return torch.cat(embeddings)

    def _inputs(self, token_batches: Sequence[TokenBatch]) -> Iterator[dict[str, Any]]:
        """The transformer's arguments for each token batch."""
        if token_batches and token_batches[0].attention_mask is None:
            # Looked up for all token batches at once: each look-up has a gradient of the size of the vocabulary.
            vectors = self.transformer.get_input_embeddings()(
                torch.cat([token_batch.input_ids for token_batch in token_batches], dim=1)
            )
            parts = vectors.split([token_batch.num_tokens for token_batch in token_batches], dim=1)
            for token_batch, part in zip(token_batches, parts, strict=True):
                assert token_batch.position_ids is not None
                positions = token_batch.position_ids + self.first_position
                yield {"inputs_embeds": part, "position_ids": positions, **attention.bounds(token_batch)}
        else:
            yield from (
                {"input_ids": token_batch.input_ids, "attention_mask": token_batch.attention_mask}
                for token_batch in token_batches
            )

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The hook by which `--gradient_checkpointing` reaches the transformer."""
        self.transformer.activation_checkpointing_enable(**kwargs)

    def packing_works(self) -> bool:
        """Whether packed token batches give the embeddings of padded ones on this device, with and without a graph."""
        device = next(self.parameters()).device
        rows = [np.arange(5, 5 + length) % 100 for length in (7, 20, 64)]
        was_training = self.training
        self.eval()
        try:
            (padded, places), (packed, order) = (
                length_sorted_batches(rows, 100, 0, layout) for layout in (False, True)
            )
            expected = self.embed([token_batch.to(device) for token_batch in padded])[places]
            found = self.embed([token_batch.to(device) for token_batch in packed])[order]
            found.sum().backward()
            with torch.inference_mode():
                self.embed([token_batch.to(device) for token_batch in packed])
            return bool(nn.functional.cosine_similarity(found, expected).min() > 0.999)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # no kernel for this device, type or head size
            logger.warning("texts are padded: packed ones do not run on %s (%s)", device, str(error).split("\n")[0])
            return False
        finally:
            self.zero_grad()
            self.train(was_training)

    def graph_bytes(self, token_batch: TokenBatch) -> int:
        """Memory that autograd keeps of a token batch until its backward pass (bytes): measured, by a forward pass."""
        kept = {}
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            embeddings = self.embed([token_batch], [0])
        del embeddings  # the graph lived until here, so that no storage was given away and counted twice
        return sum(size for address, size in kept.items() if address not in parameters)
