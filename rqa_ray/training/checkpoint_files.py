"""The files of a checkpoint that transformers' Trainer does not write; does not import Ray."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rqa_ray.errors import InputError
from rqa_ray.evaluation.results import BEFORE, EVALUATION, Evaluation
from rqa_ray.retriever.adapters import adapted_layers, load_adapter, merged, save_adapter
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import load_weights, read_weights, save_encoder
from rqa_ray.training.spent import Spent

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"  # in a checkpoint of LoRA: the matrices that `MODEL_FOLDER` has merged
STEP_FILE = "step.json"


@dataclass(frozen=True)
class StepNote:
    """Says at which step of its run a checkpoint was saved, and what the loss had learned."""

    step: int  # finished optimizer steps
    evaluation_pending: bool = False  # whether a stop has put off the evaluation of this step
    temperature: float | None = None  # of the loss at this step, which may have learned it; None: that of the settings
    of_loss: list[str] = field(default_factory=list)  # names of the loss's own parameters
    spent: Spent = field(default_factory=Spent)  # time and tokens of the run up to this step
    num_suspects: int = 0  # that the round of mining in use has left out
    leaks: dict[str, int] = field(default_factory=dict)  # `Rounds.leaks`
    evaluated_beside: bool = False  # whether the evaluation of this step was left to a task beside training
    held_out: str = ""  # `HeldOut.digest` of the eval questions that were kept out of training

    def save(self, folder: Path) -> None:
        """Writes the note into a checkpoint."""
        (folder / STEP_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> StepNote:
        """Reads the note of a checkpoint."""
        return cls.of(json.loads((folder / STEP_FILE).read_text()))

    @classmethod
    def of(cls, content: dict[str, Any]) -> StepNote:
        """Returns the note of the content of its file; earlier versions did not write all fields."""
        return cls(**content | {"spent": Spent(**content.get("spent", {}))})


def save_trained(folder: Path, encoder: Encoder) -> None:
    """Writes the model into a checkpoint, and the adapter if there is one."""
    save_encoder(encoder, str(folder / MODEL_FOLDER))
    if adapted_layers(encoder.transformer):
        save_adapter(encoder, folder / ADAPTER_FOLDER)


def load_trained(folder: Path, encoder: Encoder, trust_remote_code: bool) -> None:
    """Reads what `save_trained` wrote; of an encoder with an adapter, only the adapter.

    Raises:
        InputError: the checkpoint is of another model, of another adapter, or of other frozen weights.
    """
    model = str(folder / MODEL_FOLDER)
    if not adapted_layers(encoder.transformer):
        load_weights(encoder, model, trust_remote_code)
        return
    load_adapter(encoder, folder / ADAPTER_FOLDER)
    with merged(encoder.transformer):
        own, saved = encoder.state_dict(), read_weights(encoder, model, trust_remote_code)
    # Not to the bit, because another device may have merged them.
    if not all(torch.allclose(value.cpu(), saved[name], rtol=1e-4, atol=1e-5) for name, value in own.items()):
        raise InputError(f"{model}: has other frozen weights than --model_name_or_path; pass the model of that run")


def save_evaluations(folder: Path, here: Evaluation, before: Evaluation) -> None:
    """Writes two evaluations into a checkpoint: that of its own step, if there is one, and that of step 0."""
    for name, content in (here.files(EVALUATION) | before.files(BEFORE)).items():
        (folder / name).write_bytes(content)


def load_evaluation(folder: Path, name: str) -> Evaluation:
    """Reads what `save_evaluations` wrote, by one of its two names."""
    return Evaluation.load(name, lambda file: (folder / file).open("rb"))
