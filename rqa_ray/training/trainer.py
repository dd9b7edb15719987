"""The contrastive training loop on transformers' Trainer: batches, step, evaluation on the full corpus, checkpoints.

This file does not import Ray: the loop runs in one process, under torch.distributed, or in Ray Train's workers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rqa_ray.data.batches import BatchLoader, GlobalBatches, RankBatch
from rqa_ray.evaluation.evaluator import CorpusPass, RetrievalEvaluator
from rqa_ray.evaluation.results import BEFORE, Evaluation
from rqa_ray.retriever import distributed, losses
from rqa_ray.retriever.candidates import gather_candidates
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.interrupts import Interrupted, Interrupts
from rqa_ray.retriever.step import forward_backward
from rqa_ray.training.checkpoint_files import (
    StepNote,
    load_evaluation,
    load_trained,
    save_evaluations,
    save_trained,
)
from rqa_ray.training.rounds import Rounds
from rqa_ray.training.schedule import Schedule
from rqa_ray.training.spent import Spent, StepClock

TRAINER_STATE_FILE = "trainer_state.json"
LOSS_FILE = "loss.safetensors"  # file of a loss's own parameters


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite on some rank; no optimizer step was made with it."""


class ContrastiveTrainer(Trainer):
    """Trains an encoder, and the parameters of a loss if it has some, on global batches.

    A checkpoint contains `model/` (a complete model folder), the adapter of LoRA, the loss's parameters, optimizer and
    scheduler, `trainer_state.json`, the forward plan and the mined hard negatives. It also contains two evaluations
    (`checkpoint_files.py`): that of its step, if there is one, and that of step 0. It contains no random state,
    because batches and dropout masks are functions of (seed, batch, rank, place).
    """

    # Methods of the Trainer whose names begin with `_` are replaced where the Trainer has no public hook: for what a
    # checkpoint contains, and for an evaluation at step 0 that may be the best. pyproject.toml limits the versions.

    control: TrainerControl

    # The loss of a micro-batch is a mean, so it has to be divided by the number of accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        encoder: Encoder,
        loss: nn.Module,
        args: TrainingArguments,
        batches: GlobalBatches,
        evaluator: RetrievalEvaluator,
        *,
        trust_remote_code: bool = False,
        evaluates_beside: bool = False,
        patience: int | None = None,
        rounds: Rounds | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        """Takes a loss as in `retriever/losses.py`; its `temperature` is also the temperature of `eval_loss`."""
        self.rounds = rounds
        self.doing = "evaluating"  # or mining, when the evaluator encodes the corpus
        self.loss: Any = loss.to(args.device)
        losses.start_alike(self.loss)
        self.batches = batches
        self.evaluator = evaluator
        self.trust_remote_code = trust_remote_code
        self.held_out = ""  # for the note of a checkpoint
        self.found, self.found_step = Evaluation(), -1  # result of the last evaluation, and its step
        self.interrupts: Interrupts = encoder.interrupts
        self.schedule = Schedule(evaluates_beside, patience)
        self.spent = Spent()
        self.clock = StepClock(self.spent)
        super().__init__(
            encoder,
            args,
            data_collator=_never_called,
            train_dataset=batches,
            eval_dataset=evaluator.questions["eval"],
            callbacks=[self.schedule, self.clock, *(callbacks or [])],
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> BatchLoader:
        # accelerator.prepare would share the batches among ranks again.
        return BatchLoader(self.batches, self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[override]
        self.loss.zero_grad()
        self._mine_if_due()
        with self.spent.timed("waiting"):
            return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        for group in losses.parameter_groups(self.loss):
            optimizer.add_param_group(group)
        return optimizer

    def floating_point_ops(self, inputs: RankBatch) -> int:  # type: ignore[override]
        return 0  # nothing here uses this estimate

    def training_step(
        self, model: nn.Module, inputs: RankBatch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Adds the gradient of one global batch; returns a loss whose mean over ranks is the loss of the batch."""
        model.train()
        batch = inputs.to(self.args.device)
        seeds = [
            dropout_seed(self.args.seed, batch.index, distributed.rank(), place)
            for place in range(len(batch.token_batches))
        ]

        def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
            return self.batch_loss(embeddings, batch) / self.current_gradient_accumulation_steps

        cached = self.batches.plan.gradient_cache
        loss = forward_backward(
            model, batch.token_batches, seeds, loss_of, self.accelerator.backward, cached, self.interrupts
        )
        self.spent.tokens += distributed.world_size() * sum(part.num_tokens for part in batch.token_batches)
        if distributed.any_rank(not bool(torch.isfinite(loss)), self.args.device):
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the loss is not finite, the weights were not updated; "
                f"rows of rank {distributed.rank()} in the batch: {', '.join(map(str, batch.rows[:20]))}; "
                "lower --learning_rate or leave out --fp16"
            )
        if self.accelerator.sync_gradients:
            losses.average_gradients(self.loss)
        return loss

    def batch_loss(self, embeddings: torch.Tensor, batch: RankBatch) -> torch.Tensor:
        """Returns the loss of embeddings (rows, D), which are in the order of the batch's token batches."""
        embeddings = embeddings[batch.order]
        questions, passages = embeddings[: batch.num_questions], embeddings[batch.num_questions :]
        candidates = gather_candidates(passages, batch.passage_ids, batch.is_passage, batch.gold_ids, batch.teacher)
        if getattr(self.loss, "is_symmetric", False):
            candidates = candidates.with_askers(questions, -(-batch.global_batch_size // distributed.world_size()))
        return losses.mean_over_global_batch(self.loss(questions, candidates), batch.global_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to each logged loss the share of time in which steps waited for their batches (fraction).

        Adds the temperature too, if it is learned.
        """
        if "loss" in logs:
            if torch.is_tensor(self.loss.temperature):
                logs["temperature"] = losses.temperature_of(self.loss)
            logs["data_wait_share"] = self.clock.wait_share()
        super().log(logs, start_time)

    def rank_questions(self, *others: CorpusPass) -> Evaluation:
        """Evaluates the model on all questions; gives up if a stop is asked for."""
        with self.interrupts.watch(True):
            return self.evaluator.evaluate(losses.temperature_of(self.loss), *others)

    def _mine_if_due(self) -> None:
        """Mines a round before the next batch, if a round is due and no evaluation of this step has mined it."""
        step, before = self.state.global_step, self.schedule.before
        quality = self._quality(before if step == 0 else self.found if self.found_step == step else Evaluation())
        mining = self.rounds.start(step, self.state.max_steps, quality) if self.rounds else None
        if self.rounds and mining:
            self.doing = "mining"
            with self.spent.timed("mining"):
                with self.interrupts.watch(True):
                    self.evaluator.look_through(mining)
                self.rounds.finish(mining, quality)
            self.doing = "evaluating"

    def _quality(self, found: Evaluation) -> float:
        """Returns the metric that chooses the best model, NaN for an empty evaluation."""
        return found.metrics_of("eval").get(self.args.metric_for_best_model or "", math.nan)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Returns the metrics of the eval questions.

        The same pass ranks the test questions, but only step 0 logs their metrics.
        """
        step = self.state.global_step
        mining = self.rounds.start(step, self.state.max_steps) if self.rounds else None
        try:
            with self.spent.timed("evaluating"):
                self.found, self.found_step = self.rank_questions(*([mining] if mining else [])), step
        except Interrupted:
            self.schedule.pending_step = step
            raise
        if self.rounds and mining:
            with self.spent.timed("mining"):
                self.rounds.finish(mining, self._quality(self.found))
        metrics = self.found.metrics_of("eval")
        if step == 0:
            self.schedule.before = self.found
            metrics = self.found.metrics
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step == 0:  # the pretrained model may be the best
            self._determine_best_metric(metrics, trial)
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.spent.timed("saving"):
            super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            return
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        self.state.best_model_checkpoint = None  # a path on this worker means nothing after a resume
        self.state.save_to_json(str(folder / TRAINER_STATE_FILE))
        self.batches.plan.save(folder)
        if self.loss.state_dict():
            save_model(self.loss, str(folder / LOSS_FILE))
        here = self.found if self.schedule.is_evaluated_here(step) else Evaluation()
        save_evaluations(folder, here, self.schedule.before)
        if self.rounds:
            self.rounds.save(folder)
        of_loss = losses.temperature_of(self.loss), list(self.loss.state_dict())
        of_round = (self.rounds.num_suspects, self.rounds.leaks) if self.rounds else (0, {})
        pending, beside = self.schedule.pending_step == step, self.schedule.beside_step == step
        StepNote(step, pending, *of_loss, self.spent, *of_round, beside, self.held_out).save(folder)

    def save_interrupted(self) -> None:
        """Saves the state after the last finished step, when the next one was given up."""
        if self.state.global_step > max(self.schedule.saved_step, 0):
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            save_trained(Path(output_dir or self.args.output_dir), self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trained(folder, self.model, self.trust_remote_code)
        if self.loss.state_dict():
            load_model(self.loss, folder / LOSS_FILE, strict=True)
        if self.rounds:
            self.rounds.load(folder)
        note = StepNote.load(folder)
        self.schedule.saved_step = note.step
        vars(self.spent).update(vars(note.spent))
        self.schedule.before = self.schedule.before or load_evaluation(folder, BEFORE)

    @property
    def ends_early(self) -> bool:
        """Whether the run has ended, or ends now, because no evaluation was better for too long."""
        return self.schedule.is_out_of_patience(self.state, self.args.metric_for_best_model or "")

    def why_early(self) -> str:
        """Returns why the run has ended before its last step; an empty text if it has not."""
        if not self.ends_early or self.state.global_step >= self.state.max_steps:
            return ""
        no_better = f"{self.args.metric_for_best_model} was no better in {self.schedule.patience} evaluations"
        return f"stopped early at step {self.state.global_step}: {no_better}"

    def is_finished(self, checkpoint: str) -> bool:
        """Returns whether a checkpoint is the last of its run; the Trainer's loop would make one step more."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_FILE))
        self.schedule.complete(self.state)
        if self.ends_early:
            return True
        return self.state.global_step >= self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _save_rng_state(self, output_dir: str) -> None:
        """Does nothing, because randomness has no state here."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Does nothing, because randomness has no state here."""


def dropout_seed(seed: int, batch: int, rank: int, place: int) -> int:
    """Returns the seed of a token batch's dropout masks: a function of its place in the batch of a rank."""
    return int(np.random.SeedSequence([seed, batch, rank, place]).generate_state(1, np.uint64)[0]) >> 1


def _never_called(rows: list) -> None:
    raise AssertionError("batches are collated by GlobalBatches")
