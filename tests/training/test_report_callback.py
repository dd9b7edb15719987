"""Every save of a run is reported whole, and Ray's options for a node that goes away are those that fit DDP."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from rqa_ray.training.checkpoints import MANIFEST_FILE
from rqa_ray.training.report_callback import ReportCallback


def test_a_step_that_is_saved_twice_leaves_two_whole_folders(tmp_path):
    """Such as a step after which a node goes away, and which is the last of its epoch."""
    reported: list[Path] = []

    def report(metrics, checkpoint, validation) -> None:
        reported.append(Path(checkpoint.path))  # the upload goes on while the Trainer saves again

    schedule = SimpleNamespace(is_evaluated_here=lambda step: False, beside_step=-1)
    args = SimpleNamespace(metric_for_best_model="loss", output_dir=str(tmp_path))
    trainer = SimpleNamespace(args=args, schedule=schedule, interrupts=SimpleNamespace())
    callback = ReportCallback(trainer, None, "run", 1, report)
    for text in ("first", "second"):
        (tmp_path / "checkpoint-4").mkdir()
        (tmp_path / "checkpoint-4" / "model").write_text(text)
        callback.on_save(args, SimpleNamespace(global_step=4, is_world_process_zero=True), None)
    assert [(folder / "model").read_text() for folder in reported] == ["first", "second"]
    assert all((folder / MANIFEST_FILE).exists() for folder in reported) and len(set(reported)) == 2


@pytest.mark.parametrize(("relaxed", "late_rank"), [(False, "goes on"), (True, "waits for ever")])
def test_a_rank_that_comes_late_waits_for_ever_if_ray_relaxes_its_collectives(relaxed, late_rank):
    """Therefore `relax_collectives_on_preemption` is off: DDP needs the rank in the next step, and would wait for it.

    If this test fails with a later Ray, the option may fit.
    """
    from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor

    async def late() -> str:
        actor = SynchronizationActor.__ray_metadata__.modified_class()
        if relaxed:
            await actor.set_required_ranks([0])  # as the controller does when the node of rank 1 will go away

        def ask(rank: int, number: int):
            return actor.broadcast_from_rank_zero(rank, 2, "info", "test", collective_seq=number, relaxable=True)

        first = asyncio.create_task(ask(0, 1))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(1, 1))
        await asyncio.wait([first, second], timeout=0.2)
        ended = second.done()
        second.cancel()
        return "goes on" if ended else "waits for ever"

    assert asyncio.run(late()) == late_rank
