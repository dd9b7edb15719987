"""A Transformer module that refuses missing weights. Only code that loads a model imports this file."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules.transformer import Transformer
from transformers import PreTrainedModel

from rqa_ray.retriever.weights import refuse_loading_info


class StrictTransformer(Transformer):
    """sentence-transformers' Transformer, but missing weights raise an error: transformers would draw random ones."""

    # sentence-transformers has no public hook between loading the weights and using them
    def _load_model(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Loads the transformers model.

        Raises:
            InputError: weights are missing, or have another shape.
        """
        loaded: Any = super()._load_model(
            model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, info = loaded
        refuse_loading_info(model_name_or_path, info)
        if any(key.startswith("pooler.") for key in info["missing_keys"]):
            model.pooler = None  # else random weights would be saved as the model's own
        self.__class__ = Transformer  # type: ignore[assignment]  # what modules.json names when it is saved
        return model
