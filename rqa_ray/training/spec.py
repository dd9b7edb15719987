"""What a worker is told, and what it answers: typed, frozen, and the same for a run, a trial and an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rqa_ray.evaluation.results import Evaluation
from rqa_ray.places import inside
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.settings import TrainSettings

if TYPE_CHECKING:
    import torch

TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that one rank needs to know; plain data, and references to what lies in Ray's object store."""

    # What is trained.
    settings: TrainSettings
    training: dict[str, Any]  # transformers' TrainingArguments by name; the object is made in the worker
    model: ModelSpec
    blocks: dict[str, list]  # object references of the tokenized tables by input: corpus, eval, maybe test and train
    micro_batch: int = 0  # questions that meet in one loss, of all ranks
    windows: Any = None  # the plan and the store of training files that are streamed, in place of the train blocks

    # Where.
    output_dir: str = ""  # as the user knows it: a folder or a URI
    working_dir: str = ""  # of the driver: relative paths begin there
    num_cpus: int = 1  # of this worker
    use_gpu: bool = False
    spare: dict[str, int] | None = None  # the resources of the evaluations beside training, where there are some
    memory_sharers: int = 1  # runs that may share this node's memory

    # This attempt.
    run: str = ""  # its name in the mailbox
    mailbox: Any = None
    resume_from: str | None = None  # folder or URI of a checkpoint
    before: Evaluation = field(default_factory=Evaluation)  # of step 0, where it was made elsewhere
    report: Callable[..., None] | None = None  # in place of Ray Train's, where this is no worker of Ray Train
    phase: str = ""  # words of the progress line of an evaluation

    @property
    def eval_precision(self) -> torch.dtype | None:
        """What an evaluation autocasts to, by transformers' `--bf16_full_eval` and `--fp16_full_eval`."""
        import torch  # Ray Train's controller reads a spec, and has no other need of it

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
    """What rank 0 hands back."""

    step: int = 0  # optimizer steps that were made
    stopped: bool = False  # a stop was asked for, and the state is saved
    failure: str | None = None  # why the run ended where a restart would meet the same again
    metrics: dict[str, float] = field(default_factory=dict)  # transformers' training metrics
