"""Declares the settings of all jobs, each once: default, unit, help, and the values that it takes.

The settings of a job are a dataclass, composed of dataclasses that jobs share. `command_line.py` makes them from a
command line, a JSON config, or the keyword arguments of the Python interface. LocalRQA's flags keep their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rqa_ray.errors import InputError
from rqa_ray.fields import (
    BATCHES,
    DATA,
    EVALUATION,
    LOGGING,
    LOSS,
    MODEL,
    OUTPUT,
    WORKERS,
    Check,
    at_least,
    from_to,
    word_or_share,
)
from rqa_ray.loss_settings import LossSettings

INPUTS = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "full_dataset_file_path"}
MINED_FROM = ("dense", "bm25")  # rankings that find candidates
HYBRID = "hybrid"  # the teacher that adds the scores of the model and of BM25
DEFAULT_WORKERS = "one for each GPU of the cluster, else 1"

# LocalRQA's names, and sentence-transformers' names of poolings that LocalRQA does not have.
Pooling = Literal["mean", "cls", "last", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def model_path(default: Any, what: str, unset: str = "") -> Any:
    """Declares the setting that names a model."""
    text = f"{what}: a folder, a hub name or an installed package."
    names = ("model_name_or_path", "embedding_model_name_or_path", "model")
    return MODEL.path(default, text, unset=unset, more_names=names)


def corpus_path(default: Any, unset: str = "") -> Any:
    """Declares the setting that names the files of a corpus."""
    text = "All passages: documents.pkl, JSONL, Parquet, CSV, a BEIR folder."
    return DATA.path(default, text, unset=unset, more_names=("full_dataset_file_path", "document_path"))


def labels_path() -> Any:
    """Declares the setting that names files of accepted passages."""
    return DATA.path(None, "Decisions saved by suspects.html: accepted passages become golds of their questions.")


# Settings that several jobs share


@dataclass(kw_only=True)
class ResultSettings:
    """In which form a job prints its result."""

    json: bool = OUTPUT.setting(False, "Print the result as one line of JSON, and all else on stderr.", is_rare=True)


@dataclass(kw_only=True)
class ModelSettings:
    """How to load a model, and how it embeds texts."""

    model_revision: str | None = MODEL.setting(None, "Branch, tag or commit of a hub model.", unset="main")
    trust_remote_code: bool = MODEL.setting(False, "Run the Python code that comes with the model.")
    pooling_type: Pooling | None = MODEL.setting(None, "Pooling of token embeddings.", unset="the model's, else mean")
    similarity: Literal["cosine", "dot"] | None = MODEL.setting(
        None, "How embeddings are compared.", unset="the model's, else cosine"
    )
    max_seq_length: int | None = MODEL.setting(
        None, "Cut longer texts (tokens).", at_least(4), unset="the model's, else 512"
    )
    query_prefix: str | None = MODEL.setting(
        None, "Goes before each question: 'query: '.", unset="the model's, else none"
    )
    passage_prefix: str | None = MODEL.setting(None, "Goes before each passage.", unset="the model's, else none")
    query_prompt_name: str | None = MODEL.setting(
        None, "The model's prompt that goes before each question, by its name.", unset="query", is_rare=True
    )
    passage_prompt_name: str | None = MODEL.setting(
        None, "The model's prompt that goes before each passage, by its name.", unset="document", is_rare=True
    )


@dataclass(kw_only=True)
class LoraSettings:
    """Which small matrices are trained in place of the model's weights."""

    lora_r: int | None = MODEL.setting(
        None,
        "Train matrices of this rank beside frozen weights; needs peft.",
        at_least(1),
        unset="no LoRA",
        is_rare=True,
    )
    lora_alpha: int | None = MODEL.setting(
        None, "Scales what the matrices add: by alpha / r.", at_least(1), unset="2 x r", is_rare=True
    )
    lora_target: list[str] | None = MODEL.setting(
        None, "Names of the layers that get matrices: query value.", unset="all linear layers", is_rare=True
    )
    save_adapter: bool = OUTPUT.setting(False, "Save the matrices too, in output_dir/adapter.", is_rare=True)

    @property
    def alpha_of_lora(self) -> int:
        """What `--lora_alpha` says, or its default."""
        return self.lora_alpha or 2 * (self.lora_r or 0)

    def describe_lora(self) -> str:
        """Returns words such as `LoRA of rank 16 and alpha 32`."""
        return f"LoRA of rank {self.lora_r} and alpha {self.alpha_of_lora}" if self.lora_r else "no LoRA"


@dataclass(kw_only=True)
class DataSettings:
    """The files of a training run."""

    train_file: list[str] | None = DATA.path(
        None, "Questions with their golds: JSONL, Parquet, CSV, BEIR.", unset="required"
    )
    eval_file: list[str] | None = DATA.path(
        None, "Questions that choose the model.", unset="required, or --eval_share"
    )
    eval_share: float | None = DATA.setting(
        None,
        "Hold out this share of the training questions, by source document, in place of --eval_file.",
        Check(lambda value: 0 < value < 1, "above 0 and below 1"),
        unset="none",
        is_rare=True,
    )
    test_file: list[str] | None = DATA.path(None, "Questions that score the model before and after training.")
    full_dataset_file_path: list[str] | None = corpus_path(None, "required")
    accepted_labels: list[str] | None = labels_path()
    on_bad_record: Literal["error", "skip"] = DATA.setting(
        "error", "Stop at a wrong record, or leave it out and list it."
    )

    def given_files(self) -> list[str]:
        """Returns the input flags that name files, and `eval_share`, which names a part of a file."""
        given = [flag for flag in INPUTS.values() if any(getattr(self, flag) or [])]
        return given + ["eval_share"] * (self.eval_share is not None)

    def check_files(self) -> None:
        """Raises InputError if a file that training needs is not named, or if two flags name the eval questions."""
        given = self.given_files()
        if {"eval_file", "eval_share"} <= {*given}:
            raise InputError(f"--eval_share {self.eval_share:g}: --eval_file has the eval questions; leave out one")
        for flag in INPUTS.values():
            if flag not in given and flag != "test_file" and not (flag == "eval_file" and "eval_share" in given):
                hint = "; --eval_share 0.1 holds out a tenth of the training questions" * (flag == "eval_file")
                raise InputError(f"--{flag} is missing{hint}")


@dataclass(kw_only=True)
class BatchSettings:
    """How a global batch is made and computed."""

    global_batch_size: int | None = BATCHES.setting(
        None,
        "Questions in one step, of all workers together.",
        at_least(2),
        unset="per_device_train_batch_size x workers x accumulation",
    )
    max_tokens_per_chunk: int | None = BATCHES.setting(
        None,
        "Tokens in a forward pass, at most.",
        at_least(1),
        unset="2,000 on a CPU, 32,768 on a GPU, fewer if memory is short",
    )
    homogeneous_batches: bool = BATCHES.setting(
        False, "Each batch has questions of one source: one name in --train_file.", is_rare=True
    )
    gradient_cache: str = BATCHES.setting(
        "auto",
        "Compute twice to save memory: auto, true, false, a share.",
        word_or_share("auto", "true", "false"),
        may_be_true=True,
    )
    data_mode: Literal["auto", "resident", "streaming"] = BATCHES.setting(
        "auto",
        "Keep the data in Ray's object store, or read it in each epoch.",
    )


@dataclass(kw_only=True)
class WorkerSettings:
    """Number and resources of workers."""

    cpus_per_worker: int | None = WORKERS.setting(None, "CPU cores of a worker.", at_least(1), unset="an even share")


@dataclass(kw_only=True)
class MiningSettings:
    """Which passages may become hard negatives."""

    mine_margin: float = LOSS.setting(
        0.95,
        "Mine nothing from this share of the gold's score on.",
        Check(lambda value: 0 < value < float("inf"), "above 0 and finite"),
    )
    mine_from: list[str] | None = LOSS.setting(
        None,
        "Rankings that find candidates; bm25 needs bm25s.",
        Check(lambda value: value in MINED_FROM, "dense or bm25"),
        unset="dense bm25",
        metavar="dense|bm25",
    )
    mine_depth: int = LOSS.setting(100, "Candidates of a question from each ranking.", at_least(1))
    teacher: str | None = LOSS.path(None, "Scores candidates: hybrid (model and BM25), or a model's folder.")


@dataclass(kw_only=True)
class RoundSettings:
    """When training mines hard negatives itself."""

    mine_negatives: int = LOSS.setting(0, "Hard negatives to mine for each question before training.", at_least(0))
    mine_every: float | None = LOSS.setting(
        None,
        "Mine again after each share of the run (0.33: each third).",
        Check(lambda value: 0 < value < 1, "a fraction between 0 and 1"),
        unset="never",
    )


@dataclass(kw_only=True)
class PredictionSettings:
    """What the files of predictions hold."""

    predictions_top_k: int = OUTPUT.setting(
        10, "Best passages of a question in the predictions, at most 100.", from_to(1, 100), is_rare=True
    )


def _is_number_of_workers(value: str) -> bool:
    fewest, _, most = value.partition(":")
    return all(part.isdecimal() for part in (fewest, most or fewest)) and 1 <= int(fewest) <= int(most or fewest)


# Jobs


@dataclass(kw_only=True)
class TrainSettings(
    ResultSettings,
    PredictionSettings,
    WorkerSettings,
    MiningSettings,
    RoundSettings,
    BatchSettings,
    LossSettings,
    DataSettings,
    LoraSettings,
    ModelSettings,
):
    """The settings of jobs/train.py, in addition to transformers' TrainingArguments."""

    model_name_or_path: str | None = model_path(None, "Encoder to fine-tune", "required")
    recipe: Literal["plain", "best"] = LOSS.setting("plain", "best: the flags of training/best.json, below yours.")
    prepared_path: str | None = DATA.path(None, "Folder that jobs/prepare.py wrote, instead of the files.")
    train_share: float = DATA.setting(
        1.0,
        "Train on this share of the questions, chosen by source document.",
        Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    )
    demo_size: int | None = DATA.setting(
        None, "Train on this many questions of the built-in data, not on files.", at_least(1)
    )
    early_stopping_patience: int | None = EVALUATION.setting(
        None, "Stop after so many evaluations without a gain (0: never).", at_least(0), unset="never"
    )
    async_eval: bool = EVALUATION.setting(False, "Evaluate beside training, where GPUs or CPUs are free.")
    finish: Literal["best", "merge", "none"] = EVALUATION.setting(
        "best", "Leave the best step; merge: try means with step 0 too."
    )
    num_workers: str | None = WORKERS.setting(
        None,
        "Training processes; 2:8 is a range, if nodes come and go.",
        Check(_is_number_of_workers, "at least 1, or a range such as 2:8"),
        unset=DEFAULT_WORKERS,
        metavar="N|N:M",
    )
    max_failures: int | None = WORKERS.setting(
        None,
        "Restarts after a lost worker or node (-1: no limit).",
        at_least(-1),
        unset="0, or 8 if --num_workers is a range",
    )
    storage_path: str | None = WORKERS.path(None, "Folder or URI of checkpoints.", unset="output_dir/checkpoints")
    overwrite_output_dir: bool = OUTPUT.setting(False, "Delete an earlier run in output_dir and start anew.")
    write_predictions: bool = OUTPUT.setting(True, "Write eval-predictions.jsonl and test-predictions.jsonl.")
    logging_dir: str | None = LOGGING.path(None, "Folder of TensorBoard files.", unset="output_dir/tensorboard")
    run_project: str | None = LOGGING.setting(None, "Weights & Biases project, for --report_to wandb.", is_rare=True)
    run_group: str | None = LOGGING.setting(None, "Weights & Biases group.", is_rare=True)
    run_entity: str | None = LOGGING.setting(None, "Weights & Biases entity (a team or a user).", is_rare=True)
