"""Finds the model that a job on a corpus uses."""

from __future__ import annotations

from dataclasses import dataclass

from rqa_ray.corpus_settings import NamedModelSettings
from rqa_ray.retriever.encoder_settings import ModelSpec, encoder_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.tokenizer import check_model, prefix_note
from rqa_ray.retriever.weights import check_weights


@dataclass
class Model:
    """A model with its folder and settings, as a job uses it."""

    name: str
    spec: ModelSpec

    def describe(self) -> str:
        """Returns lines for the user."""
        note = prefix_note(self.name, self.spec)
        return f"model: {self.name}, {self.spec.settings.describe()}" + (f"\n{note}" if note else "")


def find_model(asked: NamedModelSettings) -> Model:
    """Finds the model that a job names; the settings of the job override those of the model's folder.

    Raises:
        InputError: there is no such model, or it cannot be used with these settings.
    """
    folder = find_model_folder(asked.embedding_model_name_or_path, asked.model_revision)
    spec = ModelSpec(folder, encoder_settings(folder, asked), asked.trust_remote_code)
    check_model(spec)
    check_weights(spec)
    return Model(asked.embedding_model_name_or_path, spec)
