"""Whether an encoder embeds as sentence-transformers does with the same weights: looked at before it is used."""

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
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # as a share of an embedding's length


def check_against_sentence_transformers(encoder: Encoder) -> list[str]:
    """Embeds five texts as questions and as passages, alone and together, here and by sentence-transformers.

    Where packed token batches differ from what sentence-transformers makes of each text alone, `can_pack` is taken
    from the encoder. Returns warnings, a line each.

    Raises:
        InputError: padded token batches differ too, so that another model would be trained than the one that is saved;
            or a text cannot be embedded.
    """
    was_training, settings, notes = encoder.training, encoder.settings, []
    kind, dtype = encoder.transformer.config.model_type, next(encoder.transformer.parameters()).dtype
    tokenizer = TextTokenizer(encoder.tokenizer, settings)
    rows = tokenizer.questions(TEXTS) + tokenizer.passages(TEXTS)
    encoder.eval()
    try:
        alone, together = (_theirs(encoder, batch_size) for batch_size in (1, len(TEXTS)))
        apart = _distance(together, alone)
        packed = encoder.packs_here
        if packed:
            off = _distance(_own(encoder, rows, packed=True), alone)
            if not off < TOLERANCE[dtype]:
                encoder.can_pack = packed = False
                notes.append(f"warning: texts are padded: {kind} packed is not what sentence-transformers makes of it")
        if not packed:
            off = _distance(torch.cat([_own(encoder, [row]) for row in rows]), alone)
            apart = max(apart, _distance(_own(encoder, rows), alone))
            if not off < TOLERANCE[dtype]:
                raise InputError(
                    f"the model ({kind}) gives other embeddings here than by sentence-transformers: "
                    f"those of a text alone differ by {off:.2g} of their length; choose another model"
                )
        if not apart < TOLERANCE[dtype]:
            notes.append(
                f"warning: an embedding of this model ({kind}) depends on the texts in its batch, in "
                f"sentence-transformers too: together and alone differ by {apart:.2g} of their length"
            )
        return notes
    except InputError:
        raise
    except Exception as error:  # a model's own code raises what it likes
        raise InputError(
            f"the model ({kind}) cannot embed a text: {first_line(error)}; choose another model"
        ) from None
    finally:
        encoder.train(was_training)


def _theirs(encoder: Encoder, batch_size: int) -> torch.Tensor:
    """(10, D) by sentence-transformers; of unit length where we make it so after cutting dimensions."""
    settings = encoder.settings
    options: dict[str, Any] = {"convert_to_tensor": True, "batch_size": batch_size, "show_progress_bar": False}
    options["normalize_embeddings"] = settings.similarity == "cosine"
    prompts = {"query": settings.query_prefix, "document": settings.passage_prefix}
    bf16 = next(encoder.transformer.parameters()).dtype == torch.bfloat16
    with torch.autocast(encoder.model.device.type, torch.bfloat16, enabled=bf16):  # the head's weights are in fp32
        return torch.cat(
            [encoder.model.encode(TEXTS, prompt=prompt, task=task, **options) for task, prompt in prompts.items()]
        )


@torch.inference_mode()
def _own(encoder: Encoder, rows: list, packed: bool = False) -> torch.Tensor:
    """(rows, D) of token rows together."""
    device = next(encoder.parameters()).device
    pad_id = encoder.tokenizer.pad_token_id
    token_batches, order = length_sorted_batches(rows, 100_000, pad_id, packed)
    return encoder.embed([token_batch.to(device) for token_batch in token_batches])[order.to(device)]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of two embeddings of a text, as a share of the expected one's length."""
    return ((found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-6)).max().item()
