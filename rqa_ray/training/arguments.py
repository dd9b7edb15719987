"""transformers' TrainingArguments in this job: which defaults differ, and which names are renamed, refused or unused.

The driver keeps them as plain data. Workers build the real TrainingArguments object, because it looks for devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import IntervalStrategy, SchedulerType, TrainingArguments

from rqa_ray.errors import InputError
from rqa_ray.fields import ABOVE_0, BATCHES, EVALUATION, LOGGING, OUTPUT, STEPS, WORKERS, Check, at_least, from_to

SEED = from_to(0, 2**32 - 1)  # those that numpy takes


@dataclass
class UsualArguments(TrainingArguments):
    """Those of transformers' TrainingArguments that a short `-h` shows, with the defaults of transformers."""

    num_train_epochs: float = STEPS.setting(3.0, "Passes over the questions.", ABOVE_0, unset="--max_steps decides")
    gradient_accumulation_steps: int = BATCHES.setting(1, "Batches that a worker adds up in one step.", at_least(1))
    bf16: bool = BATCHES.setting(False, "Train in bf16: fast on GPUs, and on CPUs with AMX or AVX512-BF16.")
    use_cpu: bool = WORKERS.setting(False, "Use no GPU.")
    save_total_limit: int | None = OUTPUT.setting(None, "Checkpoints to keep.", at_least(1), unset="1")


@dataclass
class RetrieverTrainingArguments(UsualArguments):
    """transformers' TrainingArguments with defaults for contrastive fine-tuning, most of them from LocalRQA."""

    output_dir: str | None = OUTPUT.path(
        None, "Folder or URI (s3://...) of the model and all results.", unset="required"
    )
    learning_rate: float = STEPS.setting(1e-5, "Peak learning rate.", at_least(0))
    max_steps: int = STEPS.setting(
        -1,
        "Optimizer steps, or --num_train_epochs.",
        Check(lambda value: value >= 1 or value == -1, "at least 1, or -1"),
        unset="from the number of pairs",
    )
    per_device_train_batch_size: int = BATCHES.setting(256, "Questions in a batch of a worker.", at_least(1))
    per_device_eval_batch_size: int = BATCHES.setting(
        128, "Texts in a forward pass of an evaluation, at most.", at_least(1)
    )
    fsdp: str | None = WORKERS.setting(
        None,
        "Share the weights among the workers, for a model that fits no GPU.",
        Check(
            lambda value: {*value.lower().split()} <= {"true", "full_shard", "auto_wrap"} or value.lower() == "false",
            "true, false or full_shard",
        ),
        unset="each worker holds the whole model",
        may_be_true=True,
        is_rare=True,
        nargs="?",
        const="true",
    )
    lr_scheduler_type: SchedulerType | str = STEPS.setting(
        "cosine", "A schedule of transformers: linear, ...", metavar="NAME"
    )
    warmup_steps: float = STEPS.setting(0.1, "Steps of a rising learning rate (below 1: share of all).", at_least(0))
    weight_decay: float = STEPS.setting(0.01, "Weight decay of the optimizer.", at_least(0))
    logging_steps: float = LOGGING.setting(10, "Steps between log lines (below 1: share of all).", ABOVE_0)
    eval_strategy: IntervalStrategy | str = EVALUATION.setting(
        "steps", "When to evaluate and save; no: first and last step only."
    )
    eval_steps: float | None = EVALUATION.setting(
        0.25,
        "Steps between evaluations (below 1: share of all).",
        Check(lambda value: 0 < value < 1 or value >= 1 and value % 1 == 0, "a fraction above 0, or a whole number"),
    )
    metric_for_best_model: str | None = EVALUATION.setting(
        "eval_retr/document_recall/recall4", "Chooses the best model."
    )
    report_to: str | None = LOGGING.setting("tensorboard", "Logs go to tensorboard, wandb, mlflow ..., or none.")
    seed: int = STEPS.setting(42, "Seed of batches, hard negatives and dropout.", SEED)
    resume_from_checkpoint: str | None = OUTPUT.path(
        None, "Go on with the run in output_dir (true), or with this checkpoint.", may_be_true=True
    )


def loggers_of(training: dict[str, object]) -> list[str]:
    """Returns the loggers that `--report_to` names, with commas or spaces between them."""
    return str(training["report_to"] or "none").replace(",", " ").split() or ["none"]


def check_report_to(training: dict[str, object]) -> None:
    """Raises InputError for a logger of `--report_to` that is not installed; else only a worker would notice."""
    asked = {*loggers_of(training)} - {"none", "all", "tensorboard"}
    if asked:
        from transformers.integrations import get_available_reporting_integrations

        missing = asked - set(get_available_reporting_integrations())
        if missing:
            raise InputError(f"--report_to {min(missing)}: is not installed here, or is not known to transformers")


# The values that arguments take of which transformers declares the setting.
CHECKS = {
    "data_seed": SEED,
    "ddp_timeout": at_least(1),
    "max_grad_norm": at_least(0),
    "adam_epsilon": at_least(0),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Check(lambda value: 0 <= value < 1, "from 0 to below 1")),
}

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
    "label_smoothing_factor": "smoothing would count passages of other questions as half right",
    "neftune_noise_alpha": "the noise is made for generative models",
    "use_liger_kernel": "the kernels are made for generative models",
    "deepspeed": "not supported; --fsdp shares weights, gradients and moments among the workers too",
    "fsdp_config": "there is nothing to configure: --fsdp shares each layer among all workers",
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
    "greater_is_better": "the name of the metric says so",
    "eval_on_start": "step 0 is always evaluated",
    "do_train": "jobs/train.py trains",
    "do_eval": "eval_file is always evaluated",
    "do_predict": "test_file is scored where it is given",
    "remove_unused_columns": "rows have the columns that training needs",
    "dataloader_drop_last": "rows that an epoch leaves over begin the next epoch",
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
    "ignore_data_skip": "a run that goes on never reads earlier rows again",
    "save_on_each_node": "checkpoints go to storage_path",
    "dataloader_num_workers": "batches are made ahead in a thread",
    "dataloader_pin_memory": "batches are views of Ray's object store",
    "dataloader_prefetch_factor": "batches are views of Ray's object store",
    "dataloader_persistent_workers": "batches are views of Ray's object store",
    "dataloader_multiprocessing_context": "batches are views of Ray's object store",
    "dataloader_in_order": "batches are a function of the step",
    "accelerator_config": "batches are dealt to ranks already",
    "ddp_backend": "Ray sets up the process group",
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "training pushes nothing to the hub (see --push_to_hub)",
    ),
    "ddp_broadcast_buffers": "ranks may forward unequal numbers of token batches",
}
