"""Embeddings in int8 and in one bit for each number, as sentence-transformers' `quantize_embeddings` makes them.

Shapes: N embeddings, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Pair = tuple[torch.Tensor, torch.Tensor]  # embeddings (N, D) of questions and of passages, fp32


def as_int8(questions: torch.Tensor, passages: torch.Tensor) -> Pair:
    """Rounds questions and passages to int8; the ranges of the passages are those of the numbers.

    The result has the whole numbers as fp32, for a search by dot product.
    """
    from sentence_transformers.util.quantization import quantize_embeddings

    ends = np.stack([passages.numpy().min(axis=0), passages.numpy().max(axis=0)])
    found = [quantize_embeddings(part.numpy(), "int8", ranges=ends) for part in (questions, passages)]
    return torch.from_numpy(np.asarray(found[0], np.float32)), torch.from_numpy(np.asarray(found[1], np.float32))


def as_bits(questions: torch.Tensor, passages: torch.Tensor) -> Pair:
    """Keeps the sign of each number; the result has -1 and 1, so the dot product ranks as the Hamming distance."""
    return _signs(questions), _signs(passages)


def as_passage_bits(questions: torch.Tensor, passages: torch.Tensor) -> Pair:
    """Keeps the sign of each number of the passages, and the whole numbers of the questions.

    This is how a search scores its candidates again.
    """
    return questions, _signs(passages)


def _signs(embeddings: torch.Tensor) -> torch.Tensor:
    from sentence_transformers.util.quantization import quantize_embeddings

    bits = np.unpackbits(quantize_embeddings(embeddings.numpy(), "ubinary"), axis=1, count=embeddings.shape[1])
    return torch.from_numpy(2 * bits.astype(np.float32) - 1)


KINDS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Pair], float]] = {  # and bytes of a stored number
    "int8 embeddings": (as_int8, 1),
    "binary embeddings": (as_bits, 1 / 8),
    "binary passages": (as_passage_bits, 1 / 8),
}
