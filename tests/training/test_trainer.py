"""The trainer on one process: everything that does not depend on ranks."""

import copy
import math
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from rqa_ray.errors import InputError
from rqa_ray.retriever.interrupts import Interrupted
from rqa_ray.retriever.losses import InBatchContrastive, temperature_of
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.plan_forward import compile_transformer
from rqa_ray.training.trainer import NonFiniteLossError, dropout_seed
from tests.training.invariance import GLOBAL_BATCH, LearnedTemperature, Recorder, make_trainer, weights


def train(folder, recorder: Recorder | None = None, **arguments):
    trainer = make_trainer(str(folder), 0.25, False, 0, 1, recorder or Recorder(), **arguments)
    trainer.train()
    return trainer


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(tmp_path) -> None:
    trainer = make_trainer(str(tmp_path), 0.0, False, 0, 1, Recorder())
    with torch.no_grad():
        trainer.model.transformer.embeddings.LayerNorm.weight[0] = float("nan")
    before = weights(trainer.model)
    with pytest.raises(NonFiniteLossError, match="^step 1: the loss is not finite, the weights were not"):
        trainer.train()
    assert torch.equal(weights(trainer.model).nan_to_num(), before.nan_to_num())


def test_accumulating_is_the_mean_of_the_gradients_of_the_batches(tmp_path) -> None:
    accumulated = Recorder()
    train(tmp_path, accumulated, gradient_accumulation_steps=2, max_steps=1)
    trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder())
    trainer.current_gradient_accumulation_steps = 2
    for batch in range(2):
        trainer.training_step(trainer.model, trainer.batches[batch])
    expected = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
    assert expected.norm() > 1e-3
    assert (accumulated.gradients[0] - expected).norm() <= 1e-5 * expected.norm()


def test_the_logged_loss_is_the_mean_over_the_questions(tmp_path) -> None:
    trainer = train(tmp_path, max_steps=1)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    fresh = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder())
    batch = fresh.batches[0]
    with torch.no_grad():
        embeddings = fresh.model(batch.token_batches)
        assert logged == pytest.approx([float(fresh.batch_loss(embeddings, batch))], rel=1e-6)
    assert batch.num_questions == GLOBAL_BATCH


def test_the_time_that_steps_wait_for_their_batches_and_all_other_times_are_measured(tmp_path, monkeypatch) -> None:
    trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), max_steps=3)
    make = trainer.batches.make
    monkeypatch.setattr(trainer.batches, "make", lambda number: time.sleep(0.5) or make(number))
    trainer.train()
    shares = [entry["data_wait_share"] for entry in trainer.state.log_history if "loss" in entry]
    spent = trainer.spent
    assert spent.waiting > 0.4 and spent.steps > 0 and 0 < max(shares) < 1
    tokens = [part.num_tokens for number in range(3) for part in make(number).token_batches]
    assert spent.tokens == sum(tokens)


def test_a_learned_temperature_is_logged_moves_at_its_own_rate_and_is_that_of_the_evaluation(tmp_path) -> None:
    loss = InBatchContrastive(0.2, learns_temperature=True)
    adam = {"optim": "adamw_torch", "learning_rate": 1e-6, "max_steps": 3}
    trainer = train(tmp_path, loss=loss, **adam)
    logged = [entry["temperature"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3 and abs(math.log(logged[0] / 0.2)) == pytest.approx(0.01, rel=1e-3)  # Adam's first step
    temperatures = []
    trainer.evaluator.evaluate = temperatures.append
    trainer.rank_questions()
    assert temperatures == [logged[-1]] == [temperature_of(loss)]
    plain = train(tmp_path, **adam)
    assert not any("temperature" in entry for entry in plain.state.log_history)


@pytest.mark.parametrize(
    ("backend", "dropout"),
    [
        ("eager", 0.0),
        pytest.param("inductor", 0.0, marks=pytest.mark.slow),
        pytest.param("inductor", 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_encoder_makes_the_same_steps_cached_or_not(tmp_path, backend, dropout) -> None:
    def gradients(compiled: bool, cached: bool) -> list[torch.Tensor]:
        recorder = Recorder()
        trainer = make_trainer(str(tmp_path), 0.25, cached, 0, 1, recorder, max_steps=1)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        if compiled:
            arguments = copy.copy(trainer.args)
            arguments.torch_compile, arguments.torch_compile_backend = True, backend
            assert not compile_transformer(trainer.model, arguments).torch_compile  # it is done, the Trainer must not
        trainer.train()
        return recorder.gradients

    torch._dynamo.reset()
    # With dropout the eager step has other masks, cheaper ones.
    expected = gradients(compiled=dropout > 0, cached=False)
    for found, gradient in zip(gradients(compiled=True, cached=True), expected, strict=True):
        assert (found - gradient).norm() <= 1e-4 * gradient.norm() > 0


def test_the_size_of_the_token_batches_changes_no_logged_loss(tmp_path) -> None:
    def losses(max_tokens: int) -> list[float]:
        trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), packed=True, max_tokens=max_tokens)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = losses(10_000)
    assert len(expected) == 10 and max(expected) - min(expected) > 0.01
    for max_tokens in (1, 70, 333):
        assert losses(max_tokens) == pytest.approx(expected, rel=1e-5)


def test_every_token_batch_has_a_seed_of_its_own() -> None:
    places = [
        (seed, batch, rank, token_batch)
        for seed in (0, 1)
        for batch in (0, 1)
        for rank in (0, 1)
        for token_batch in (0, 1)
    ]
    assert len({dropout_seed(*place) for place in places}) == len(places)


def test_the_last_step_is_evaluated_and_saved_whatever_the_interval(tmp_path) -> None:
    trainer = make_trainer(str(tmp_path), 0.0, False, 0, 1, Recorder(), eval_strategy="steps", eval_steps=4)
    saved = []
    trainer._save_checkpoint = lambda *_: saved.append(trainer.state.global_step)
    trainer.train()
    assert saved == [4, 8, 10]
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == saved


def test_a_stop_gives_up_an_evaluation_which_is_noted_for_the_checkpoint_of_its_step(tmp_path) -> None:
    trainer = train(tmp_path, max_steps=2)
    trainer.interrupts.is_asked = lambda: True
    with pytest.raises(Interrupted):
        trainer.evaluate()
    assert trainer.schedule.pending_step == 2


def test_a_stop_gives_up_a_step_and_leaves_the_state_after_the_last_whole_one(tmp_path) -> None:
    whole = train(tmp_path, max_steps=2)
    trainer = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), max_steps=4)
    trainer.interrupts.watching = True
    trainer.interrupts.is_asked = lambda: trainer.state.global_step == 2
    with pytest.raises(Interrupted):
        trainer.train()
    saved = []
    trainer._save_checkpoint = lambda *_: saved.append(trainer.state.global_step)
    trainer.save_interrupted()
    assert saved == [2] and trainer.schedule.pending_step == -1
    assert torch.equal(weights(trainer.model), weights(whole.model))


def test_the_parameters_of_a_loss_are_in_the_checkpoint_and_back_on_resume(tmp_path) -> None:
    trained = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), loss=LearnedTemperature(), max_steps=2)
    del trained._save_checkpoint  # the real one
    trained.train()
    resumed = make_trainer(str(tmp_path), 0.25, False, 0, 1, Recorder(), loss=LearnedTemperature())
    assert resumed.loss.log_scale != trained.loss.log_scale
    checkpoint = tmp_path / "scratch-0" / "checkpoint-2"
    resumed._load_from_checkpoint(str(checkpoint))
    assert torch.equal(resumed.loss.log_scale, trained.loss.log_scale)
    assert StepNote.load(checkpoint).temperature == temperature_of(trained.loss)
    assert torch.equal(weights(resumed.model), weights(trained.model))


def train_lora(folder, steps: int, checkpoint: str | None = None):
    """Trains with Adam, whose moments a resume has to restore, and saves the last step."""
    arguments = {"lora": True, "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": steps}
    trainer = make_trainer(str(folder), 0.25, True, 0, 1, Recorder(), packed=True, **arguments)
    del trainer._save_checkpoint  # the real one
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_a_run_of_lora_that_is_resumed_ends_with_the_same_matrices_to_the_bit(tmp_path) -> None:
    pytest.importorskip("peft", reason='needs peft: pip install -e ".[lora]"')
    whole = train_lora(tmp_path, 4)
    checkpoint = tmp_path / "scratch-0" / "checkpoint-2"
    train_lora(tmp_path, 2)
    resumed = train_lora(tmp_path, 4, str(checkpoint))
    assert resumed.state.global_step == 4
    assert torch.equal(weights(resumed.model), weights(whole.model))
    moments = torch.load(checkpoint / "optimizer.pt")["state"]
    assert sum(one["exp_avg"].numel() for one in moments.values()) == len(weights(whole.model))
    saved, base = (load_file(folder / "model.safetensors") for folder in (checkpoint / "model", tmp_path / "model"))
    assert saved.keys() == base.keys() and sum(not torch.equal(saved[name], base[name]) for name in base) == 12
    changed = base | {"encoder.layer.0.attention.self.query.weight": torch.zeros(32, 32)}
    save_file(changed, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="checkpoint-2/model: has other frozen weights than --model_name_or_path"):
        train_lora(tmp_path, 4, str(checkpoint))
