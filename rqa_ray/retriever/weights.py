"""Checks the weights in a model's folder without loading the model, so that a broken folder is found before a job."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.places import read_any_json
from rqa_ray.retriever.encoder_settings import HEADS, ModelSpec, modules_of

LARGEST_READ = 4 * 2**30  # bytes of weights whose values are looked at: half a second, or as long as the disk takes
_NAMES = ("model.safetensors", "pytorch_model.bin")  # as transformers looks for them; .index.json lists several files
_POINTER = b"version https://git-lfs"


def check_weights(spec: ModelSpec) -> None:
    """Raises InputError if weights of a model are missing, cut short, not finite, or no fit for its config.json.

    Takes 0.2 s for a model of 90 MB. Not looked at: values in pytorch_model.bin and in models above `LARGEST_READ`,
    and the names of weights that the model's own code loads. `load_encoder` checks all of them.
    """
    files = []
    for kind, folder in modules_of(spec.folder):
        own = weight_files(folder)
        if kind in ("Transformer", *HEADS) and not own:
            raise InputError(f"{folder}: has no model.safetensors; pass a folder that is complete")
        files += own
    for path in files:
        _check_whole(path)
    _, transformer = modules_of(spec.folder)[0]
    unused = set() if spec.trust_remote_code else _check_names(transformer)
    if sum(path.stat().st_size for path in files) <= LARGEST_READ:
        for path in files:
            if path.suffix == ".safetensors":
                _check_finite(path, unused)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files from which transformers loads the weights of a folder; empty if it has none.

    Raises:
        InputError: a file that the folder's index lists is missing.
    """
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            listed = read_any_json(index, {}).get("weight_map", {})
            paths = [folder / part for part in sorted(set(listed.values()))]
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise InputError(f"{missing[0]}: {index.name} lists this file; pass a folder that has it")
            return paths
    return []


def _check_whole(path: Path) -> None:
    """Raises InputError for a file that is cut short, or is only a pointer of Git LFS."""
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            raise InputError(f"{path}: is a pointer of Git LFS, not the weights; run git lfs pull in its folder")
        if path.suffix != ".safetensors":
            is_whole = start[:2] != b"PK" or zipfile.is_zipfile(path)  # torch wrote no zip files before 1.6
        else:
            file.seek(0)
            is_whole = path.stat().st_size == _expected_size(file)
    if not is_whole:
        raise InputError(f"{path}: is cut short, or is no file of weights; copy or download the file again")


def _expected_size(file: Any) -> int:
    """Reads the size of a safetensors file (bytes) from its header; returns -1 if there is no header."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, 2**27)))  # no header of safetensors is longer than 100 MB
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return -1
    return 8 + length + max(ends, default=0)


def _check_names(folder: Path) -> set[str]:
    """Raises InputError if a transformer lacks weights, or has some of another shape; returns names that are not used.

    transformers makes the model without memory for its weights.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    info: dict[str, Any] = {}
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its own report of missing weights has a line for each
    # Without a word about it, transformers would ask whoever sits at the terminal whether to run a folder's code.
    options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    options["trust_remote_code"] = False
    with contextlib.suppress(Exception):  # a folder that needs more than this, such as an adapter: its loader decides
        model, found = AutoModel.from_pretrained(folder, local_files_only=True, **options)
        if not (hasattr(model, "encoder") and hasattr(model, "decoder")):  # of these, only the encoder is loaded
            info = found
    logging.set_verbosity(verbosity)
    refuse_loading_info(str(folder), info)
    return set(info.get("unexpected_keys", ()))


def refuse_loading_info(folder: str, info: dict[str, Any]) -> None:
    """Raises InputError for what transformers reports as missing, or as of another shape, after it loaded a model."""
    missing = sorted(key for key in info.get("missing_keys", ()) if not key.startswith("pooler."))
    mismatched = sorted(str(mismatch[0]) for mismatch in info.get("mismatched_keys", ()))
    if missing or mismatched:
        what = (
            f"weights {'are missing' if missing else 'have another shape'}: {', '.join((missing or mismatched)[:3])}"
        )
        raise InputError(f"{folder}: {what}; pass a folder whose weights belong to its config.json")


def _check_finite(path: Path, unused: set[str]) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in set(file.keys()) - unused:
            refuse_not_finite(str(path.parent), name, file.get_tensor(name))


def refuse_not_finite(folder: str, name: str, value: Any) -> None:
    """Raises InputError if a tensor of weights has a value that is not finite."""
    import torch

    can_add = value.is_floating_point() and value.element_size() > 1  # torch cannot add numbers of 8 bits
    if can_add and not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        raise InputError(f"{folder}: the weights {name} are not finite; pass a folder that can be used")
