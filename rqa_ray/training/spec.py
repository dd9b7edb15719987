"""The typed message to a worker and its answer, the same for a run, a trial and an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rqa_ray.data.share import Share
from rqa_ray.data.sources import Sources
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class FinishSpec:
    """What the workers need to know to choose the model that a run leaves."""

    place: str  # folder or URI of what the candidates have scored
    checkpoints: dict[int, str]  # folders or URIs of the best checkpoints, by step
    before: Evaluation  # the evaluation of the pretrained model
    clusters: np.ndarray  # (Q,) the cluster of each eval question, see `confidence.py`
    asked: dict[str, str]  # `rows.fingerprint` by split; results of other questions count as missing


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that one rank needs to know: plain data, and references to objects in Ray's store."""

    # What to train.
    settings: TrainSettings
    training: dict[str, Any]  # transformers' TrainingArguments by name; the worker makes the object
    model: ModelSpec
    blocks: dict[str, list]  # references to the tokenized tables by input: corpus, eval, perhaps test and train
    micro_batch: int = 0  # questions of all ranks that meet in one loss
    sources: Sources | None = None  # of the training files, if each batch has rows of one source
    held_out: str = ""  # `HeldOut.digest` of the eval questions that are kept out of training
    windows: Any = None  # plan and store of streamed training files, which replace the train blocks
    mining: Any = None  # reference of the MiningTexts (`rounds.py`), if hard negatives are mined

    bm25: Any = None  # reference of the positions of BM25's best passages by split, if a hybrid is measured

    # Where to train.
    output_dir: str = ""  # folder or URI, as the user knows it
    working_dir: str = ""  # the driver's working directory, where relative paths begin
    num_cpus: int = 1  # CPUs of this worker
    use_gpu: bool = False
    spare: dict[str, int] | None = None  # resources for evaluations beside training, if there are such evaluations
    memory_sharers: int = 1  # runs that may share this node's memory

    # This attempt.
    run: str = ""  # name of the run in the mailbox
    mailbox: Any = None
    resume_from: str | None = None  # folder or URI of the checkpoint to resume from
    before: Evaluation = field(default_factory=Evaluation)  # the evaluation of step 0, if another process made it
    report: Callable[..., None] | None = None  # replaces `ray.train.report` if this is no worker of Ray Train
    phase: str = ""  # words of the progress line during an evaluation
    finish: FinishSpec | None = None  # what is finished, if this is no training
    may_leave: bool = False  # whether the driver starts new workers if these end before their node is taken away

    @property
    def share(self) -> Share:
        """The share of the training pairs that are trained on."""
        return Share(self.settings.train_share, self.training["seed"])

    @property
    def fsdp(self) -> bool:
        """Whether each worker holds a shard of the model."""
        return bool(self.training.get("fsdp"))

    @property
    def eval_precision(self) -> torch.dtype | None:
        """The type to which an evaluation autocasts, by transformers' `--bf16_full_eval` and `--fp16_full_eval`."""
        import torch  # imported here, because Ray Train's controller reads a spec and does not need torch

        if self.training.get("bf16_full_eval"):
            return torch.bfloat16
        return torch.float16 if self.training.get("fp16_full_eval") else None

    @property
    def logging_location(self) -> str:
        """Where TensorBoard files go: a folder, or a URI to which they are copied with every checkpoint."""
        given = self.settings.logging_dir or inside(self.output_dir, TENSORBOARD_FOLDER)
        return given if "://" in given else os.path.join(self.working_dir, given)


@dataclass(frozen=True)
class WorkerResult:
    """The answer of rank 0."""

    step: int = 0  # finished optimizer steps
    stopped: bool = False  # true if the state is saved, after a stop or before a node is taken away
    failure: str | None = None  # why the run ended, if a restart would end in the same way
    metrics: dict[str, float] = field(default_factory=dict)  # transformers' training metrics
