"""The helpers without a process group, and embeddings, loss and gradients on two real gloo ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.step import forward_backward
from rqa_ray.retriever.token_batches import length_sorted_batches
from tests.ranks import run_ranks
from tests.retriever.test_losses import contrastive_loss

RANKS = 2


def assert_identities() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather(tensor) is tensor
    ids = torch.arange(6).view(3, 2)
    assert [id(part) for part in distributed.gather_with_gradient(tensor, ids)] == [id(tensor), id(ids)]
    assert distributed.any_rank(True) is True and distributed.any_rank(False) is False
    distributed.barrier()


def test_without_a_process_group_all_are_the_identity():
    assert_identities()


def test_in_a_group_of_one_all_are_the_identity_and_this_is_decided_at_each_call(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert_identities()
    finally:
        dist.destroy_process_group()
    assert_identities()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_model) -> list[dict]:
    """The results of two ranks, which run once for all tests here."""
    return run_ranks(RANKS, on_rank, tmp_path_factory.mktemp("ranks"), tiny_model)


def on_rank(model_folder: str) -> dict:
    rank = distributed.rank()
    own = rows_of(rank).requires_grad_()
    own_ids = ids_of(rank)
    gathered, gathered_ids = distributed.gather_with_gradient(own, own_ids)
    (gathered * weights_of(rank)).sum().backward()
    half_used = rows_of(rank).requires_grad_()
    values, _ = distributed.gather_with_gradient(half_used, own_ids)
    (values.sum() * (rank == 1)).backward()  # rank 0's loss does not depend on it
    everywhere = torch.arange(6).view(2, 3) + 10 * rank
    distributed.barrier()
    return {
        "who": (distributed.is_distributed(), distributed.rank(), distributed.world_size()),
        "gathered": gathered.detach(),
        "gathered ids": gathered_ids,
        "gradient": own.grad,
        "gradient of one rank's loss": half_used.grad,
        "ids": distributed.gather(everywhere),
        "transposed": distributed.gather(everywhere.T),
        "flags": distributed.gather(torch.tensor([True, rank == 1])),
        "any": [distributed.any_rank(flag) for flag in (False, rank == 0, rank == 1, True)],
        "steps": {key: step(model_folder, rank, RANKS, *key) for key in STEPS},
    }


def rows_of(rank: int) -> torch.Tensor:
    return torch.arange(6.0).view(3, 2) + 100 * rank


def ids_of(rank: int) -> torch.Tensor:
    """Returns ids with every bit pattern, also those of NaNs."""
    return torch.tensor([[-1, 2**63 - 1], [0x7FC00001_7F800001, -(2**63)], [3, 4]]) - rank


def weights_of(rank: int) -> torch.Tensor:
    return torch.randn(3 * RANKS, 2, generator=torch.Generator().manual_seed(rank))


def test_ranks_know_each_other(ranks):
    assert [found["who"] for found in ranks] == [(True, 0, 2), (True, 1, 2)]


def test_gather_concatenates_in_the_order_of_ranks_whatever_the_type_and_the_strides(ranks):
    ids = torch.arange(6).view(2, 3)
    for found in ranks:
        assert torch.equal(found["gathered"], torch.cat([rows_of(0), rows_of(1)]))
        assert torch.equal(found["gathered ids"], torch.cat([ids_of(0), ids_of(1)]))
        assert torch.equal(found["ids"], torch.cat([ids, ids + 10]))
        assert torch.equal(found["transposed"], torch.cat([ids.T, ids.T + 10]))
        assert found["flags"].tolist() == [True, False, True, True]


def test_each_rank_gets_the_gradient_of_its_own_rows_summed_over_ranks(ranks):
    total = weights_of(0) + weights_of(1)
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found["gradient"], total[3 * rank :][:3])
        assert torch.equal(found["gradient of one rank's loss"], torch.ones(3, 2))


def test_any_rank_is_the_same_everywhere(ranks):
    assert all(found["any"] == [False, True, True, True] for found in ranks)


# Whether the step is cached, and the number of hard negatives of the global batch.
STEPS = [(False, 0), (False, 3), (True, 0), (True, 3)]
NUM_QUESTIONS = 5


def step(model_folder: str, rank: int, world_size: int, gradient_cache: bool, num_negatives: int) -> dict:
    """Returns loss and gradients of a global batch of 5 questions: ranks differ in rows, token batches and padding."""
    generator = np.random.default_rng(0)
    questions = [generator.integers(5, 140, length) for length in (4, 9, 3, 7, 5)]
    passages = [generator.integers(5, 140, length) for length in (30, 12, 30, 21, 40, 8, 16, 25)]
    passages[2] = passages[0]
    ids = np.array([1, 2, 1, 4, 5, 6, 7, 8])  # the first and the third question have one passage
    golds = torch.tensor([[1, 1], [2, 5], [1, 1], [4, 4], [5, 5]])  # the second has two golds

    mine = np.arange(NUM_QUESTIONS)[rank::world_size]
    my_negatives = NUM_QUESTIONS + np.arange(num_negatives)[world_size - 1 - rank :: world_size]
    my_passages = np.concatenate([mine, my_negatives])
    rows = [questions[i] for i in mine] + [passages[i] for i in my_passages]
    token_batches, order = length_sorted_batches(rows, max_tokens=40, pad_id=0, packed=True)
    num_passages = -(-NUM_QUESTIONS // world_size) + -(-num_negatives // world_size)
    padding = num_passages - len(my_passages)

    def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
        found = embeddings[order]
        return contrastive_loss(
            found[: len(mine)],
            torch.nn.functional.pad(found[len(mine) :], (0, 0, 0, padding)),
            torch.from_numpy(np.pad(ids[my_passages], (0, padding))),
            torch.arange(num_passages) < len(my_passages),
            golds[mine],
            0.05,
            NUM_QUESTIONS,
        )

    encoder = load_encoder(model_folder, EncoderSettings(), dropout=0.0)
    model = DistributedDataParallel(encoder) if world_size > 1 else encoder
    loss = forward_backward(
        model, token_batches, list(range(len(token_batches))), loss_of, torch.Tensor.backward, gradient_cache
    )
    return {
        "loss": loss,
        "gradients": {name: value.grad for name, value in encoder.named_parameters() if value.requires_grad},
        "token batches": len(token_batches),
        "rows": len(rows),
    }


@pytest.mark.parametrize("key", STEPS, ids=lambda key: f"{'cached' if key[0] else 'plain'}-{key[1]}-negatives")
def test_two_unequal_ranks_have_the_loss_and_the_gradient_of_one_process(tiny_model, ranks, key):
    expected = step(tiny_model, 0, 1, False, key[1])
    found = [rank["steps"][key] for rank in ranks]
    assert found[0]["rows"] != found[1]["rows"] and found[0]["token batches"] != found[1]["token batches"]
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, expected["loss"], rtol=1e-5, atol=1e-5)
    reference = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()])
    assert expected["loss"] > 0.1 and reference.norm() > 0.1
    for part in found:
        gradient = torch.cat([part["gradients"][name].flatten() for name in expected["gradients"]])
        assert (gradient - reference).norm() < 1e-4 * reference.norm()
