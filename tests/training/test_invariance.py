"""The contract of this product: the same global batch gives the same loss and gradient on 1, 2 and 4 workers.

The test uses real gloo processes, the real trainer, fp32 and SGD (Adam would hide a wrong factor), and compares
gradients by norm.
"""

import functools
import multiprocessing
import tempfile
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from tests.training import invariance

# Ranks fork from one process that has imported torch: a rank starts in a second instead of six.
multiprocessing.set_forkserver_preload(["tests.training.invariance"])


@functools.cache
def result(
    world_size: int,
    hard_neg_ratio: float,
    gradient_cache: float = 0.0,
    packed: bool = True,
    mutation: str = "none",
    loss: str = "own",
    dense: bool = False,
    per_question: int = 0,
    rounds: str | None = None,
    lora: bool = False,
    fsdp: bool = False,
) -> dict:
    mined = rounds and {"mined": invariance.MINED, "taught": invariance.TAUGHT}[rounds]
    with tempfile.TemporaryDirectory() as folder:
        invariance.random_bert(folder, dense)
        how = (hard_neg_ratio, gradient_cache, packed, mutation, loss, per_question, mined, lora, fsdp)
        arguments = (world_size, folder, *how)
        torch.multiprocessing.start_processes(invariance.run, arguments, nprocs=world_size, start_method="forkserver")
        return torch.load(Path(folder) / "result.pt", weights_only=False)


def differences(one: dict, other: dict) -> dict[str, float]:
    """Returns relative differences: of the weights, relative to how far they moved.

    Of the gradients at steps 1 and 10.
    """
    moved = (one["weights"] - one["start"]).norm()
    return {
        "weights": float((one["weights"] - other["weights"]).norm() / moved),
        **{
            f"gradient {step}": float((a - b).norm() / a.norm())
            for step, a, b in zip((1, 10), one["gradients"], other["gradients"], strict=True)
        },
    }


def is_the_same_training(one: dict, other: dict) -> bool:
    found = differences(one, other)
    return found["weights"] <= 1e-3 and found["gradient 1"] <= 1e-5 and found["gradient 10"] <= 1e-5


@pytest.mark.parametrize(("some", "more", "hard_neg_ratio"), [(1, 2, 0.0), (1, 2, 0.25), (1, 4, 0.25), (2, 4, 0.25)])
def test_any_number_of_workers_makes_the_same_steps(some: int, more: int, hard_neg_ratio: float) -> None:
    one, other = result(some, hard_neg_ratio), result(more, hard_neg_ratio)
    assert is_the_same_training(one, other), differences(one, other)
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


def test_hard_negatives_that_each_question_brings_make_the_same_steps_too() -> None:
    one, other = result(1, 0.25, per_question=2), result(2, 0.25, per_question=2)
    assert is_the_same_training(one, other), differences(one, other)
    assert one["num_negatives"] > result(1, 0.25)["num_negatives"]


def test_hard_negatives_that_are_mined_twice_make_the_same_steps_too() -> None:
    one, other = result(1, 0.25, per_question=2, rounds="mined"), result(2, 0.25, per_question=2, rounds="mined")
    assert is_the_same_training(one, other), differences(one, other)
    assert [told.partition(":")[0] for told in one["rounds"]] == ["mined round 1 at step 0", "mined round 2 at step 5"]
    assert (one["round"]["ids"] == other["round"]["ids"]).all()
    assert not is_the_same_training(one, result(1, 0.25, per_question=2))


@pytest.mark.parametrize(("world_size", "gradient_cache"), [(1, 1.0), (2, 0.0), (2, 0.3)])
def test_a_loss_from_outside_with_a_parameter_makes_the_same_steps_too(world_size: int, gradient_cache: float) -> None:
    one = result(1, 0.25, loss="with a parameter")
    other = result(world_size, 0.25, gradient_cache, loss="with a parameter")
    assert is_the_same_training(one, other), differences(one, other)
    started, ended = torch.tensor(5.0).log(), one["of loss"]["log_scale"]
    assert abs(ended - started) > 0.01, "the parameter was not trained"
    torch.testing.assert_close(other["of loss"]["log_scale"], ended, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("loss", "world_size", "gradient_cache"),
    [
        ("symmetric", 4, 1.0),
        ("all at once", 1, 0.3),
        ("all at once", 2, 0.3),
        ("all at once", 4, 0.0),
    ],
)
def test_a_symmetric_loss_and_cut_embeddings_make_the_same_steps_too(
    loss: str, world_size: int, gradient_cache: float
) -> None:
    one, other = (
        result(*which, loss=loss, per_question=1) for which in ((1, 0.25), (world_size, 0.25, gradient_cache))
    )
    assert is_the_same_training(one, other), differences(one, other)
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
    assert not is_the_same_training(one, result(1, 0.25, per_question=1))
    for name, learned in one["of loss"].items():
        moved = [value - torch.tensor(0.5).log() for value in (learned, other["of loss"][name])]
        assert abs(moved[0]) > 1e-4, "the temperature was not trained"
        torch.testing.assert_close(*moved, rtol=5e-3, atol=0)  # the movement is near the rounding of the parameter


@pytest.mark.parametrize(("world_size", "gradient_cache"), [(1, 1.0), (2, 0.3), (4, 0.0)])
def test_a_teacher_makes_the_same_steps_too(world_size: int, gradient_cache: float) -> None:
    one = result(1, 0.25, loss="distilled", per_question=1)
    other = result(world_size, 0.25, gradient_cache, loss="distilled", per_question=1)
    assert is_the_same_training(one, other), differences(one, other)
    assert not is_the_same_training(one, result(1, 0.25, per_question=1))


def test_the_hybrid_teaches_the_same_steps_too() -> None:
    one, other = (result(ranks, 0.25, loss="distilled", per_question=2, rounds="taught") for ranks in (1, 2))
    assert is_the_same_training(one, other), differences(one, other)
    told = [[line for line in run["rounds"] if line.startswith("teacher")] for run in (one, other)]
    assert told[0] == told[1] and " and 0.15 of BM25's" in told[0][0] and len(told[0]) == 2
    assert not is_the_same_training(one, result(1, 0.25, per_question=2, rounds="taught"))


@pytest.mark.parametrize(("world_size", "gradient_cache"), [(1, 0.3), (2, 0.0)])
def test_a_head_of_sentence_transformers_makes_the_same_steps_too(world_size: int, gradient_cache: float) -> None:
    one, other = result(1, 0.25, dense=True), result(world_size, 0.25, gradient_cache, dense=True)
    assert is_the_same_training(one, other), differences(one, other)
    assert len(one["weights"]) == len(result(1, 0.25)["weights"]) + 32 * 16 + 16


@pytest.mark.parametrize(("world_size", "gradient_cache"), [(1, 1.0), (2, 0.0), (2, 0.3)])
def test_lora_makes_the_same_steps_too(world_size: int, gradient_cache: float) -> None:
    pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    one, other = result(1, 0.25, lora=True), result(world_size, 0.25, gradient_cache, lora=True)
    assert is_the_same_training(one, other), differences(one, other)
    assert (one["weights"] - one["start"]).norm() > 0.1, "no matrix was trained"
    assert len(one["weights"]) < len(result(1, 0.25)["weights"]) / 2


@pytest.mark.parametrize(
    ("gradient_cache", "more"),
    [(0.0, {}), (1.0, {"dense": True}), (0.0, {"packed": False, "loss": "with a parameter", "per_question": 1})],
)
def test_weights_that_workers_share_make_the_same_steps_too(gradient_cache: float, more: dict) -> None:
    one, other = result(1, 0.25, **more), result(2, 0.25, gradient_cache, fsdp=True, **more)
    assert is_the_same_training(one, other), differences(one, other)
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.parametrize(("hard_neg_ratio", "share"), [(0.0, 0.3), (0.25, 0.3), (0.25, 1.0)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_gradient_caching_makes_the_same_steps(world_size: int, hard_neg_ratio: float, share: float) -> None:
    plain, cached = result(world_size, hard_neg_ratio), result(world_size, hard_neg_ratio, gradient_cache=share)
    assert is_the_same_training(plain, cached), differences(plain, cached)
    assert plain["losses"][0] == pytest.approx(cached["losses"][0], rel=1e-6)
    assert plain["losses"] == pytest.approx(cached["losses"], rel=1e-5)
    # From the same weights every parameter's gradient is the same, where it is more than rounding.
    whole = plain["gradients"][0].norm()
    pairs = zip(*(run["gradients"][0].split(run["sizes"]) for run in (plain, cached)), strict=True)
    counting = [(one, other) for one, other in pairs if one.norm() > 1e-4 * whole]
    assert len(counting) > 25
    assert max(float((one - other).norm() / one.norm()) for one, other in counting) <= 1e-5


def test_padded_token_batches_make_the_same_steps_as_packed_ones() -> None:
    padded = result(2, 0.25, packed=False)
    assert is_the_same_training(result(1, 0.25), padded), differences(result(1, 0.25), padded)


def test_the_comparison_is_not_vacuous() -> None:
    plain, with_negatives = result(1, 0.0), result(1, 0.25)
    assert plain["num_masked"] > 0, "no passage repeated in the batch, no question had two golds"
    assert with_negatives["num_negatives"] > 0 and plain["num_negatives"] == 0
    for outcome in (plain, with_negatives):
        assert all(gradient.norm() > 1e-3 for gradient in outcome["gradients"])
        assert (outcome["weights"] - outcome["start"]).norm() > 0.1


@pytest.mark.parametrize("mutation", invariance.MUTATIONS)
def test_the_comparison_notices(mutation: str) -> None:
    assert not is_the_same_training(result(1, 0.25), result(2, 0.25, mutation=mutation))
