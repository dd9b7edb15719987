"""The trainer of an encoder that two ranks share: evaluation, checkpoints, resume, stops."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer

from rqa_ray.evaluation import evaluator
from rqa_ray.retriever.interrupts import Interrupted
from rqa_ray.retriever.losses import InBatchContrastive
from rqa_ray.training.trainer import ContrastiveTrainer
from tests.ranks import run_ranks
from tests.training.invariance import Recorder, make_trainer, random_bert, weights

STEPS = 4
NUMBERS = {
    "optim": "adamw_torch_fused",
    "learning_rate": 1e-3,
    "max_grad_norm": 0.1,
    "weight_decay": 0.01,
    "gradient_accumulation_steps": 2,
}


def train(
    folder: str, checkpoint: str | None = None, rank: int = 0, world_size: int = 1, is_stopped: bool = False, **more
) -> ContrastiveTrainer:
    """Trains with gradient caching, clipped gradients and a learned temperature; evaluates and saves twice.

    If the run `is_stopped`, one rank sees a stop in step 4, and all save the state after step 3.
    """
    more = NUMBERS | {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2} | more
    loss = InBatchContrastive(0.2, learns_temperature=True)
    trainer = make_trainer(
        folder, 0.25, True, rank, world_size, Recorder(), packed=True, loss=loss, lacking=(3,), **more
    )
    del trainer._save_checkpoint  # the real one
    if not is_stopped:
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer
    trainer.interrupts.watching = True
    trainer.interrupts.is_asked = lambda: trainer.state.global_step == 3 and rank == 1
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.save_interrupted()
    return trainer


def in_parts(folder: str, lora: bool) -> dict:
    """What a run of two ranks gives, and the same run, stopped and resumed."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
    evaluator.TEXTS_PER_BLOCK = 3  # rank 0 has 4 blocks of the 19 passages, and rank 1 has 3
    more = {"rank": rank, "world_size": world_size, "fsdp": True, "lora": lora}
    whole = train(folder, **more)
    result = {"weights": weights(whole.model), "found": whole.found, "history": whole.state.log_history}
    moments = [value["exp_avg"] for value in whole.optimizer.state.values()]
    for name, parts in ("weights", whole.model.parameters()), ("moments", moments[:-1]):  # the last: the temperature
        counts = [(part.to_local().numel(), part.numel()) for part in parts]
        result[f"share of {name}"] = sum(own for own, _ in counts) / sum(all_of_them for _, all_of_them in counts)
    whole.interrupts.is_asked = lambda: rank == 1
    with pytest.raises(Interrupted):
        whole.evaluate()
    train(folder, is_stopped=True, **more)
    resumed = train(folder, f"{folder}/scratch-0/checkpoint-3", **more)
    return result | {"resumed": weights(resumed.model), "found again": resumed.found}


@pytest.fixture(scope="module", params=[False, True], ids=["all weights", "lora"])
def runs(request, tmp_path_factory) -> tuple[Path, dict, dict, bool]:
    if request.param:
        pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    folder = tmp_path_factory.mktemp("shards")
    random_bert(str(folder))
    return folder, *run_ranks(2, in_parts, folder, str(folder), request.param), request.param


def test_a_stopped_and_resumed_run_ends_with_the_same_weights_to_the_bit(runs) -> None:
    _, *ranks, _ = runs
    for rank in ranks:
        assert torch.equal(rank["weights"], ranks[0]["weights"])
        assert torch.equal(rank["resumed"], rank["weights"])
        assert rank["found again"].metrics.keys() == rank["found"].metrics.keys()


def test_each_rank_holds_half_of_the_weights_and_of_the_moments(runs) -> None:
    _, *ranks, _ = runs
    for what in ("share of weights", "share of moments"):
        assert [rank[what] for rank in ranks] == pytest.approx([0.5, 0.5], abs=0.05)


def test_one_process_trains_and_evaluates_alike_and_goes_on_from_the_same_checkpoint(runs) -> None:
    folder, first, _, lora = runs
    elsewhere = {"output_dir": str(folder / "alone"), "lora": lora}
    alone = train(str(folder), **elsewhere)
    moved = (weights(alone.model) - first["weights"]).norm() / first["weights"].norm()
    assert moved < 1e-4
    logged = [
        [entry["grad_norm"] for entry in log if "grad_norm" in entry]
        for log in (alone.state.log_history, first["history"])
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-3) and len(logged[0]) == STEPS
    assert min(logged[0]) > NUMBERS["max_grad_norm"], "nothing was clipped"
    for name, value in alone.found.metrics.items():
        assert first["found"].metrics[name] == pytest.approx(value, abs=1e-4) or "latency" in name
    resumed = train(str(folder), str(folder / "scratch-0" / "checkpoint-2"), **elsewhere)
    assert (weights(resumed.model) - first["weights"]).norm() / first["weights"].norm() < 1e-4


def test_the_folder_of_a_checkpoint_is_whole(runs) -> None:
    folder, first, _, lora = runs
    saved, base = (
        SentenceTransformer(str(path), device="cpu")
        for path in (folder / "scratch-0" / f"checkpoint-{STEPS}" / "model", folder / "model")
    )
    parts = zip(saved.named_parameters(), base.named_parameters(), strict=True)
    trained = [one for (name, one), (_, other) in parts if not torch.equal(one, other)]
    if lora:
        assert len(trained) == 12  # the linear layers, merged
    else:
        assert torch.equal(torch.cat([value.flatten() for value in trained]), first["weights"])
    assert list((folder / "scratch-1").rglob("*")) == []  # rank 1 saves nothing
