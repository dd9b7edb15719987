"""If one rank sees a stop at any moment of a step, the step ends on all ranks, and nothing hangs."""

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from rqa_ray.retriever.distributed import gather_with_gradient, rank, world_size
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.interrupts import Interrupted
from rqa_ray.retriever.step import forward_backward
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.ranks import run_ranks

LOOKS = 12  # more than a step has


def step(model_folder: str, cached: float, asking_rank: int | None, after: int) -> tuple[str, int, torch.Tensor]:
    """Returns how a step ended if `asking_rank` sees a stop at look number `after`, the looks, and the gradient."""
    generator = np.random.default_rng(3)
    rows = [generator.integers(5, 140, 10) for _ in range(8)]
    mine = rows[:2] if rank() == 0 else rows[2:]  # 1 token batch, and 3
    token_batches, _ = length_sorted_batches(mine, 20, 0, False)
    encoder = load_encoder(model_folder, EncoderSettings(), dropout=0.1)
    looks = 0

    def is_asked() -> bool:
        nonlocal looks
        looks += 1
        return rank() == asking_rank and looks > after

    encoder.interrupts.is_asked, encoder.interrupts.watching = is_asked, after >= 0

    def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(embeddings, (0, 0, 0, 6 - len(embeddings)))
        everything, _ = gather_with_gradient(padded, torch.zeros(6, 1, dtype=torch.long))
        return (embeddings @ everything.T).square().sum()

    model = DistributedDataParallel(encoder) if world_size() > 1 else encoder
    seeds = list(range(len(token_batches)))
    ended = "whole"
    try:
        forward_backward(model, token_batches, seeds, loss_of, torch.Tensor.backward, cached, encoder.interrupts)
    except Interrupted:
        ended = "interrupted"
    gradients = [value.grad.flatten() for value in encoder.parameters() if value.grad is not None]
    return ended, looks, torch.cat(gradients) if gradients else torch.zeros(0)


def all_steps(model_folder: str) -> dict:
    found = {}
    for cached in (0.0, 0.5, 1.0):
        found[cached, None, -1] = step(model_folder, cached, None, -1)
        for asking_rank in (0, 1):
            for after in range(LOOKS):
                found[cached, asking_rank, after] = step(model_folder, cached, asking_rank, after)
    return found


@pytest.fixture(scope="module")
def ranks(tiny_model, tmp_path_factory):
    return run_ranks(2, all_steps, tmp_path_factory.mktemp("interrupts"), tiny_model)


@pytest.mark.parametrize("cached", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("asking_rank", [0, 1])
def test_all_ranks_end_alike_wherever_one_of_them_sees_the_stop(ranks, cached, asking_rank) -> None:
    ends = []
    for after in range(LOOKS):
        first, second = (part[cached, asking_rank, after] for part in ranks)
        assert first[0] == second[0]
        ends.append(first[0])
    looks = ends.count("interrupted")
    assert looks >= (3 if asking_rank else 1) and ends == ["interrupted"] * looks + ["whole"] * (LOOKS - looks)


@pytest.mark.parametrize("cached", [0.0, 0.5, 1.0])
def test_a_step_that_is_watched_has_the_gradient_of_one_that_is_not(ranks, cached) -> None:
    for part in ranks:
        watched, unwatched = part[cached, 0, LOOKS - 1], part[cached, None, -1]
        assert watched[0] == unwatched[0] == "whole" and watched[1] > 0 == unwatched[1]
        torch.testing.assert_close(watched[2], unwatched[2])
        assert watched[2].norm() > 0.1


def test_any_share_of_cached_gradients_gives_two_ranks_the_same_gradient_with_dropout(ranks) -> None:
    for part in ranks:
        plain, *cached = (part[share, None, -1][2] for share in (0.0, 0.5, 1.0))
        for gradient in cached:
            assert (gradient - plain).norm() < 1e-5 * plain.norm()


def test_without_ranks_a_stop_ends_the_step_at_once(tiny_model) -> None:
    for cached in (0.0, 0.5, 1.0):
        assert step(tiny_model, cached, 0, 0)[:2] == ("interrupted", 1)
