"""The in-batch contrastive loop on transformers' Trainer: step, batches, evaluation on the full corpus, checkpoints.

Knows no Ray: it runs on one process, under torch.distributed, or inside Ray Train's workers alike.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rqa_ray.data.batches import BatchLoader, GlobalBatches, RankBatch
from rqa_ray.evaluation.evaluator import RetrievalEvaluator, SplitResult, merge_metrics
from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import load_weights, save_encoder
from rqa_ray.retriever.interrupts import Interrupted, Interrupts
from rqa_ray.retriever.losses import contrastive_loss
from rqa_ray.retriever.step import forward_backward
from rqa_ray.training.schedule import SaveWithEvaluation

MODEL_FOLDER = "model"
EVALUATION_FILE = "evaluation.json"
RANKINGS_FILE = "rankings.npz"
TRAINER_STATE_FILE = "trainer_state.json"
CHOICES_FILE = "choices.json"  # what was chosen automatically: used again on resume, for the same bits


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite on some rank; no optimizer step was made with it."""


class ContrastiveTrainer(Trainer):
    """Trains an encoder on global batches. `choices` are those of `build.choose`.

    A checkpoint holds `model/` (a complete model folder), the optimizer and scheduler, `trainer_state.json`, and,
    where the step was evaluated, metrics and rankings of eval and test in `evaluation.json` and `rankings.npz`; those
    of step 0 always. It has no random state: batches and dropout masks are functions of (seed, batch, rank, place).
    """

    control: TrainerControl

    # The loss of a micro-batch is a mean: it has to be divided by the number of accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Any,
        args: TrainingArguments,
        batches: GlobalBatches,
        evaluator: RetrievalEvaluator,
        *,
        temperature: float,
        choices: dict[str, Any],
        trust_remote_code: bool = False,
        evaluates_beside: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.batches = batches
        self.evaluator = evaluator
        self.temperature = temperature
        self.choices = choices
        self.trust_remote_code = trust_remote_code
        self.results: dict[str, SplitResult] = {}  # of the last evaluation
        self.before: dict[str, SplitResult] = {}  # of step 0, the pretrained model
        self.evaluated_step = self.saved_step = -1
        self.evaluation_pending = False  # a stop has put off the evaluation of this step
        self.interrupts: Interrupts = encoder.interrupts
        self.saving = SaveWithEvaluation(evaluates_beside)
        self._seconds = {"waiting": 0.0, "computing": 0.0}  # since the loss was logged
        super().__init__(
            encoder,
            args,
            data_collator=_never_called,
            train_dataset=batches,
            eval_dataset=evaluator.questions["eval"],
            callbacks=[self.saving, *(callbacks or [])],
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> BatchLoader:
        # Not through accelerator.prepare, which would shard again what is dealt to ranks already.
        return BatchLoader(self.batches, self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator, num_batches, device):  # type: ignore[override]
        with self._timed("waiting"):
            return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

    def floating_point_ops(self, inputs: RankBatch) -> int:  # type: ignore[override]
        return 0  # an estimate that nothing here uses

    def training_step(
        self, model: nn.Module, inputs: RankBatch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Adds the gradient of one global batch; the mean over ranks of what it returns is the loss."""
        model.train()
        batch = inputs.to(self.args.device)
        seeds = [
            dropout_seed(self.args.seed, batch.index, distributed.rank(), token_batch)
            for token_batch in range(len(batch.token_batches))
        ]

        def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
            return self.batch_loss(embeddings, batch) / self.current_gradient_accumulation_steps

        cached = self.choices["gradient_cache"]
        with self._timed("computing"):
            loss = forward_backward(
                model, batch.token_batches, seeds, loss_of, self.accelerator.backward, cached, self.interrupts
            )
        if distributed.any_rank(not bool(torch.isfinite(loss)), self.args.device):
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the loss is not finite, the weights were not updated; "
                f"rows of rank {distributed.rank()} in the batch: {', '.join(map(str, batch.rows[:20]))}; "
                "lower --learning_rate or leave out --fp16"
            )
        return loss

    def batch_loss(self, embeddings: torch.Tensor, batch: RankBatch) -> torch.Tensor:
        """Loss of the embeddings of a batch's token batches (rows, D), in the order of the token batches."""
        embeddings = embeddings[batch.order]
        questions, passages = embeddings[: batch.num_questions], embeddings[batch.num_questions :]
        padding = len(batch.passage_ids) - len(passages)
        return contrastive_loss(
            questions,
            nn.functional.pad(passages, (0, 0, 0, padding)),
            batch.passage_ids,
            batch.is_passage,
            batch.gold_ids,
            self.temperature,
            batch.global_batch_size,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to each logged loss the share of the time in which the step waited for its batch (fraction)."""
        if "loss" in logs:
            logs["data_wait_share"] = self._seconds["waiting"] / max(sum(self._seconds.values()), 1e-9)
            self._seconds = dict.fromkeys(self._seconds, 0.0)
        super().log(logs, start_time)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - start

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of the eval questions. Test questions are ranked in the same pass; only step 0 logs them."""
        try:
            with self.interrupts.watch(True):
                self.results = self.evaluator.evaluate(self.model)
        except Interrupted:
            self.evaluation_pending = True
            raise
        self.evaluated_step = self.state.global_step
        metrics = dict(self.results["eval"].metrics)
        if self.state.global_step == 0:
            self.before = self.results
            metrics = merge_metrics(self.results)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def take_before(self, results: dict[str, SplitResult]) -> None:
        """Takes the results of step 0 from elsewhere, where many runs start from one pretrained model."""
        self.before = self.saving.before = results

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step == 0:  # the pretrained model is a candidate for the best
            self._determine_best_metric(metrics, trial)
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.saved_step = self.state.global_step
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.state.best_model_checkpoint = None  # a path of this worker means nothing after a resume
        self.state.save_to_json(str(folder / TRAINER_STATE_FILE))
        here = self.results if self.evaluated_step == self.state.global_step else {}
        (folder / CHOICES_FILE).write_text(json.dumps(self.choices))
        write_results(folder, self.state.global_step, here, self.before, self.evaluation_pending)

    def save_interrupted(self) -> None:
        """Saves the state after the last finished step, when the work in hand was given up."""
        if self.state.global_step > max(self.saved_step, 0):
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            save_encoder(self.model, self.tokenizer, str(Path(output_dir or self.args.output_dir) / MODEL_FOLDER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(self.model, str(folder / MODEL_FOLDER), self.trust_remote_code)
        evaluation = json.loads((folder / EVALUATION_FILE).read_text())
        self.saved_step = evaluation["step"]
        if self.before:
            return
        before = evaluation["before"]
        rankings = np.load(folder / RANKINGS_FILE)
        self.before = {
            split: SplitResult(
                {name: value for name, value in before.items() if name.startswith(f"{split}_")},
                rankings[f"before_{split}_scores"],
                rankings[f"before_{split}_positions"],
            )
            for split in self.evaluator.questions
        }

    def is_finished(self, checkpoint: str) -> bool:
        """Whether a checkpoint has all its steps: the Trainer's loop would run one more."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_FILE))
        return self.state.global_step >= self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: randomness has no state here."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: randomness has no state here."""


def dropout_seed(seed: int, batch: int, rank: int, token_batch: int) -> int:
    """The random state of a token batch's dropout, a function of where the token batch is."""
    return int(np.random.SeedSequence([seed, batch, rank, token_batch]).generate_state(1, np.uint64)[0] >> 1)


def write_results(
    folder: Path,
    step: int,
    results: dict[str, SplitResult],
    before: dict[str, SplitResult],
    pending: bool = False,
) -> None:
    """Writes metrics and rankings of a checkpoint's step (none where it was not evaluated) and of step 0.

    `pending`: an evaluation was due at this step, and a stop has put it off.
    """
    metrics = {"metrics": merge_metrics(results), "before": merge_metrics(before)}
    evaluation = {"step": step, "pending": pending, **metrics}
    (folder / EVALUATION_FILE).write_text(json.dumps(evaluation, indent=2))
    rankings: dict[str, Any] = result_arrays("", results) | result_arrays("before_", before)
    np.savez(folder / RANKINGS_FILE, **rankings)


def result_arrays(prefix: str, results: dict[str, SplitResult]) -> dict[str, np.ndarray]:
    """The rankings of all splits, by name."""
    return {
        f"{prefix}{split}_{name}": getattr(result, name)
        for split, result in results.items()
        for name in ("scores", "positions")
    }


def _never_called(rows: list) -> None:
    raise AssertionError("batches are collated by GlobalBatches")
