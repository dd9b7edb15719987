"""Checks that an encoder gives the same embeddings as sentence-transformers, before the encoder is used."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from rqa_ray.errors import InputError, first_line
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.token_batches import length_sorted_batches
from rqa_ray.retriever.tokenizer import TextTokenizer

_WORDS = "which person in the old city by the river wrote a book about whales and how many pages does it have".split()
TEXTS = ["", "Hi", *(" ".join(itertools.islice(itertools.cycle(_WORDS), number)) for number in (3, 17, 41))]
# largest allowed distance, as a share of the embedding's length
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def check_against_sentence_transformers(encoder: Encoder) -> list[str]:
    """Embeds five texts as questions and as passages, with this encoder and with sentence-transformers, and compares.

    If only packed token batches differ, the function sets `can_pack` to False, so that texts are padded. Returns
    warnings, one line each.

    Raises:
        InputError: padded token batches differ too, so the saved model would not be the trained one; or the model
            cannot embed a text, or embeds a text as numbers that are not finite.
    """
    was_training, settings, notes = encoder.training, encoder.settings, []
    kind, dtype = encoder.transformer.config.model_type, next(encoder.transformer.parameters()).dtype
    tokenizer = TextTokenizer(encoder.tokenizer, settings)
    rows = tokenizer.questions(TEXTS) + tokenizer.passages(TEXTS)
    encoder.eval()
    try:
        alone, together = (_by_sentence_transformers(encoder, batch_size) for batch_size in (1, len(TEXTS)))
        if not torch.isfinite(alone).all():
            raise InputError(
                f"the model ({kind}) gives embeddings that are not finite, also in sentence-transformers: its weights "
                f"are too large for {str(dtype).removeprefix('torch.')}; choose another model"
            )
        apart = _distance(together, alone)
        packed = encoder.packs_here
        if packed:
            off = _distance(_own(encoder, rows, packed=True), alone)
            if not off < TOLERANCE[dtype]:
                encoder.can_pack = packed = False
                notes.append(
                    f"warning: texts are padded: unpadded, {kind} gives other embeddings than sentence-transformers"
                )
        if not packed:
            off = _distance(torch.cat([_own(encoder, [row]) for row in rows]), alone)
            apart = max(apart, _distance(_own(encoder, rows), alone))
            if not off < TOLERANCE[dtype]:
                raise InputError(
                    f"the model ({kind}) gives other embeddings here than in sentence-transformers: "
                    f"for a single text they differ by {off:.2g} of their length; choose another model"
                )
        if not apart < TOLERANCE[dtype]:
            notes.append(
                f"warning: an embedding of this model ({kind}) depends on the other texts in its batch, also in "
                f"sentence-transformers: it differs by {apart:.2g} of its length"
            )
        return notes
    except InputError:
        raise
    except Exception as error:  # the model may bring its own code, which may raise any error
        raise InputError(
            f"the model ({kind}) cannot embed a text: {first_line(error)}; choose another model"
        ) from None
    finally:
        encoder.train(was_training)


def _by_sentence_transformers(encoder: Encoder, batch_size: int) -> torch.Tensor:
    """Returns (10, D) embeddings by sentence-transformers, with unit length where the encoder makes unit length."""
    settings = encoder.settings
    options: dict[str, Any] = {"convert_to_tensor": True, "batch_size": batch_size, "show_progress_bar": False}
    options["normalize_embeddings"] = settings.similarity == "cosine"
    prompts = {"query": settings.query_prefix, "document": settings.passage_prefix}
    bf16 = next(encoder.transformer.parameters()).dtype == torch.bfloat16
    # because the head's weights are in fp32
    with torch.autocast(encoder.model.device.type, torch.bfloat16, enabled=bf16):
        return torch.cat(
            [encoder.model.encode(TEXTS, prompt=prompt, task=task, **options) for task, prompt in prompts.items()]
        )


@torch.inference_mode()
def _own(encoder: Encoder, rows: list, packed: bool = False) -> torch.Tensor:
    """Returns (rows, D) embeddings by this encoder, all rows together."""
    device = next(encoder.parameters()).device
    pad_id = encoder.tokenizer.pad_token_id
    token_batches, order = length_sorted_batches(rows, 100_000, pad_id, packed)
    return encoder.embed([token_batch.to(device) for token_batch in token_batches])[order.to(device)]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest distance between two embeddings of a text, as a share of the expected embedding's length."""
    return ((found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-6)).max().item()
