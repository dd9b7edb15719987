"""The time of a run is summed up by phase, also over a resume."""

from rqa_ray.training import spent
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.spent import Spent, StepClock


def test_the_share_of_waiting_is_that_since_it_was_last_asked_for(monkeypatch):
    now = 0.0
    monkeypatch.setattr(spent.time, "perf_counter", lambda: now)
    clock = StepClock(Spent())
    for waiting, step in ((1, 3), (0, 1), (1, 1)):
        with clock.spent.timed("waiting"):
            now += waiting
        clock.on_step_begin(None, None, None)
        now += step
        clock.on_step_end(None, None, None)
        if step == 1:
            continue
        assert clock.wait_share() == 1 / 4
    assert clock.wait_share() == 1 / 3
    assert (clock.spent.waiting, clock.spent.steps) == (2, 5)


def test_a_checkpoint_keeps_the_times_and_one_of_an_earlier_version_has_none(tmp_path):
    note = StepNote(3, spent=Spent(steps=2.5, tokens=9), num_suspects=4)
    note.save(tmp_path)
    assert StepNote.load(tmp_path) == note
    assert StepNote.of({"step": 3}) == StepNote(3)


def test_the_first_share_of_a_resumed_run_leaves_out_the_run_before():
    clock = StepClock(Spent())
    vars(clock.spent).update(vars(Spent(waiting=10.0, steps=11.0)))  # from a checkpoint
    clock.on_train_begin(None, None, None)
    clock.spent.steps += 2.0
    assert clock.wait_share() == 0
