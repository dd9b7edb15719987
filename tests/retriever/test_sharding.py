"""Encoders that two ranks share, against the same encoders on one rank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.sharding import shard, whole
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.models import small_model
from tests.ranks import run_ranks

# T5 has the table of vectors twice. ALBERT has one layer for all layers.
TYPES: dict[str, dict[str, Any]] = {"bert": {}, "t5": {"d_model": 32, "num_layers": 2}, "albert": {}, "qwen3": {}}
ROWS = [np.arange(5, 5 + length) for length in (3, 4, 9, 20, 30)]


def gradients(encoder: Encoder) -> torch.Tensor:
    """Returns the gradient of a sum over several token batches, in one vector."""
    encoder.zero_grad()
    token_batches, _ = length_sorted_batches(ROWS, 40, 1, encoder.can_pack)
    encoder(token_batches, range(len(token_batches))).sum(1).pow(3).sum().backward()
    with_gradient = [value.grad for value in encoder.parameters() if value.grad is not None]
    return torch.cat([(part.full_tensor() if encoder.is_sharded else part).flatten() for part in with_gradient])


def compare(folder: str) -> dict[str, Any]:
    """Computes embeddings, gradients and bytes of a graph with an encoder, and again after it is shared."""
    encoder, rank = load_encoder(folder, EncoderSettings()), dist.get_rank()
    packed, results = encoder.can_pack, []
    token_batch = length_sorted_batches(ROWS, 1000, 1, packed)[0][0]
    for is_sharded in (False, True):
        if is_sharded:
            shard(encoder, torch.device("cpu"))
        rows = [ROWS, []][rank]  # rank 1 has nothing to embed
        embedded = Embedder(encoder.eval(), EmbedOptions(1, 20, packed=packed)).rows(rows)
        results.append((embedded, gradients(encoder.train()), encoder.graph_bytes(token_batch)))
    if encoder.transformer.supports_gradient_checkpointing:
        encoder.activation_checkpointing_enable()
        assert torch.equal(gradients(encoder), results[1][1])
    own = sum(value.to_local().numel() for value in encoder.parameters())
    with whole(encoder):
        assert rank or sum(value.numel() for value in encoder.parameters()) > 1.8 * own
    in_bf16 = load_encoder(folder, EncoderSettings()).eval()
    shard(in_bf16, torch.device("cpu"), bf16=True)
    torch.testing.assert_close(
        Embedder(in_bf16, EmbedOptions(1, 20, packed=packed)).rows(rows), embedded, atol=0.05, rtol=0
    )
    return {"results": results, "parts": sum(hasattr(module, "unshard") for module in encoder.modules())}


def compare_all(folders: list[str]) -> list[dict[str, Any]]:
    return [compare(folder) for folder in folders]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """What the two ranks have found, by type of model."""
    folder: Path = tmp_path_factory.mktemp("models")
    models = [small_model(folder / name, name, **more) for name, more in TYPES.items()]
    return dict(zip(TYPES, zip(*run_ranks(2, compare_all, folder, models), strict=True), strict=True))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_shared_encoder_gives_the_same_embeddings_and_gradients_and_keeps_what_needs_weights(
    compared, model_type
) -> None:
    for rank, found in enumerate(compared[model_type]):
        (plain, gradient, kept), (shared, of_shared, kept_of_shared) = found["results"]
        assert len(shared) == [len(ROWS), 0][rank]
        torch.testing.assert_close(shared, plain)
        assert (of_shared - gradient).norm() <= 1e-5 * gradient.norm()
        # What depends on weights cannot be computed again while another layer is whole.
        assert kept <= kept_of_shared < 1.5 * kept
        assert found["parts"] == {"t5": 3, "albert": 3}.get(model_type, 4)  # layers, vectors, and the rest
