"""transformers' TrainingArguments in this job: which defaults differ, and which names are renamed, refused or unused.

The driver keeps them as plain data. Workers build the real TrainingArguments object, because it looks for devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import IntervalStrategy, SchedulerType, TrainingArguments

from rqa_ray.fields import ABOVE_0, Check, at_least, path, setting


@dataclass
class RetrieverTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with defaults for contrastive fine-tuning, most of them from LocalRQA."""

    output_dir: str | None = path(
        None, "Folder or URI (s3://...) of the fine-tuned model, metrics, predictions and checkpoints."
    )
    learning_rate: float = setting(1e-5, "Peak learning rate.", at_least(0))
    max_steps: int = setting(
        200,
        "Optimizer steps. --num_train_epochs without --max_steps: all of those epochs.",
        Check(lambda value: value >= 1 or value == -1, "at least 1, or -1"),
    )
    per_device_train_batch_size: int = setting(256, "Questions per worker and batch.", at_least(1))
    per_device_eval_batch_size: int = setting(
        128, "Texts per forward pass when encoding for evaluation, at most.", at_least(1)
    )
    lr_scheduler_type: SchedulerType | str = setting("cosine", "Learning-rate schedule.")
    warmup_steps: float = setting(0.1, "Warm-up (steps; below 1: fraction of all steps).", at_least(0))
    weight_decay: float = setting(0.01, "Weight decay.")
    logging_steps: float = setting(10, "Log every so many optimizer steps (below 1: fraction of all steps).", ABOVE_0)
    eval_strategy: IntervalStrategy | str = setting(
        "steps", "When to evaluate and save: steps, epoch, or no (the start and the end only)."
    )
    eval_steps: float | None = setting(
        50,
        "Evaluate and save every so many steps (below 1: fraction of all steps).",
        Check(lambda value: 0 < value < 1 or value >= 1 and value % 1 == 0, "a fraction above 0, or a whole number"),
    )
    metric_for_best_model: str | None = setting(
        "eval_retr/document_recall/recall4", "Metric that chooses the best model."
    )
    report_to: str | None = setting("tensorboard", "Where to log: tensorboard, wandb, mlflow ..., none.")
    seed: int = setting(42, "Seed of batches, hard negatives and dropout.", at_least(0))
    resume_from_checkpoint: str | None = path(
        None, "Go on: with the last run in output_dir (true), or from a checkpoint folder."
    )


# For transformers' own arguments, which keep their defaults.
CHECKS = {"gradient_accumulation_steps": at_least(1), "save_total_limit": at_least(1)}

# Names that transformers 5 dropped: the new name, or None if there is nothing to choose; and the reason.
ALIASES: dict[str, tuple[str | None, str]] = {
    "evaluation_strategy": ("eval_strategy", "is now --eval_strategy"),
    "warmup_ratio": ("warmup_steps", "is now --warmup_steps, a fraction when below 1"),
    "no_cuda": ("use_cpu", "is now --use_cpu"),
    "group_by_length": (None, "has no effect: texts are sorted by length inside each global batch anyway"),
    "save_safetensors": (None, "has no effect: weights are always saved as safetensors"),
}

# TrainingArguments that are refused, with the reason for the user.
REFUSED: dict[str, str] = {
    "auto_find_batch_size": "the batch is part of the objective; --gradient_cache makes any batch fit",
    "label_smoothing_factor": "a smoothed label would make golds of other questions half right",
    "neftune_noise_alpha": "it is made for generative models",
    "use_liger_kernel": "its kernels are for generative models",
    "deepspeed": "not supported; encoders fit one device with DDP and --gradient_cache",
    "fsdp": "not supported; encoders fit one device with DDP and --gradient_cache",
    "fsdp_config": "not supported, see --fsdp",
    "parallelism_config": "not supported; data parallelism over --num_workers",
    "push_to_hub": "upload output_dir when the run has ended: hf upload NAME OUTPUT_DIR",
    "save_only_model": "a run could not be resumed",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save the state already",
    "include_num_input_tokens_seen": "not counted here",
    "torch_empty_cache_steps": "not supported",
}

# TrainingArguments that are accepted and have no effect, with the reason.
NO_EFFECT: dict[str, str] = {
    "save_strategy": "saving follows evaluation (--eval_strategy)",
    "save_steps": "saving follows evaluation (--eval_steps)",
    "load_best_model_at_end": "the best model is always what output_dir holds",
    "greater_is_better": "known from the metric",
    "eval_on_start": "step 0 is always evaluated",
    "do_train": "jobs/train.py trains",
    "do_eval": "eval_file is always evaluated",
    "do_predict": "test_file is scored where it is given",
    "remove_unused_columns": "rows have the columns that training needs",
    "dataloader_drop_last": "rows left over at an epoch's end open the next",
    "train_sampling_strategy": "global batches are a seeded permutation",
    "length_column_name": "lengths are known from the tokens",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "average_tokens_across_devices": "the loss is a mean over questions",
    "prediction_loss_only": "evaluation ranks the corpus",
    "batch_eval_metrics": "evaluation ranks the corpus",
    "eval_do_concat_batches": "evaluation ranks the corpus",
    "eval_accumulation_steps": "evaluation streams the corpus",
    "eval_use_gather_object": "evaluation ranks the corpus",
    "include_for_metrics": "evaluation ranks the corpus",
    "label_names": "there are no labels",
    "local_rank": "Ray places the workers",
    "ignore_data_skip": "resuming is an index, not a replay",
    "save_on_each_node": "checkpoints go to storage_path",
    "dataloader_num_workers": "batches are made ahead in a thread",
    "dataloader_pin_memory": "batches are views of Ray's object store",
    "dataloader_prefetch_factor": "batches are views of Ray's object store",
    "dataloader_persistent_workers": "batches are views of Ray's object store",
    "dataloader_multiprocessing_context": "batches are views of Ray's object store",
    "dataloader_in_order": "batches are a function of the step",
    "accelerator_config": "batches are dealt to ranks already",
    "ddp_backend": "Ray sets up the process group",
    "ddp_broadcast_buffers": "ranks may forward unequal numbers of token batches",
}
