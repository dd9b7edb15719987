"""rqa_ray: contrastive fine-tuning of retrievers, scaled on Ray.

`from rqa_ray import Embedder, evaluate, mine, search, train, tune` gives notebooks and programs what the jobs do. A
name is loaded when it is used, so `import rqa_ray` alone imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

import rqa_ray.ray_environment  # noqa: F401  (before anything here imports Ray)

if TYPE_CHECKING:
    from rqa_ray.interface import evaluate, mine, search, train, tune
    from rqa_ray.retriever.embedder import Embedder

__all__ = ["Embedder", "evaluate", "mine", "search", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rqa_ray' has no attribute {name!r}")
    module = "rqa_ray.retriever.embedder" if name == "Embedder" else "rqa_ray.interface"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]  # for completion of names in a notebook
