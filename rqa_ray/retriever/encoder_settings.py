"""What belongs to a model beside its weights, as the sentence-transformers files of its folder say it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError

# Our pooling names and sentence-transformers'.
POOLING_NAMES = {"mean": "mean", "cls": "cls", "last": "lasttoken", "max": "max"}
POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
_MODULES = {"Transformer", "Pooling", "Normalize"}
_DEFAULT_MAX_SEQ_LENGTH = 512  # for a folder that does not say; long-context encoders take --max_seq_length
_NO_LIMIT = 1_000_000_000  # tokenizers write 10^30 where there is none
POSITION_OFFSETS = {"roberta", "xlm-roberta", "camembert", "mpnet"}  # their positions start behind the padding index


@dataclass
class EncoderSettings:
    """What belongs to a model beside its weights, and is saved with it."""

    pooling: str = "mean"
    similarity: str = "cosine"
    normalize: bool = True
    max_seq_length: int = _DEFAULT_MAX_SEQ_LENGTH
    query_prefix: str = ""
    passage_prefix: str = ""

    def describe(self) -> str:
        """One line for the start of a run."""
        prefixes = f", prefixes {self.query_prefix!r} / {self.passage_prefix!r}" if self.has_prefixes else ""
        return f"{self.pooling} pooling, {self.similarity} similarity, up to {self.max_seq_length} tokens{prefixes}"

    @property
    def has_prefixes(self) -> bool:
        return bool(self.query_prefix or self.passage_prefix)


def read_settings(
    folder: str,
    *,
    pooling: str | None = None,
    similarity: str | None = None,
    max_seq_length: int | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
) -> EncoderSettings:
    """Settings of a model folder: what its sentence-transformers files say, overridden by what is given.

    Raises:
        InputError: not a model folder, one with modules that cannot be trained here, or a length it cannot take.
    """
    root = Path(folder)
    modules = _read_json(root / "modules.json", [])
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if set(kinds) - _MODULES:
        unknown = ", ".join(sorted(set(kinds) - _MODULES))
        raise InputError(
            f"{folder}: has the module {unknown}; only a transformer, pooling and normalising can be trained"
        )
    config = _read_json(transformer_folder(folder) / "config.json", None)
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{folder}: not a model folder, it has no config.json with a model_type; pass one that has")
    general = _read_json(root / "config_sentence_transformers.json", {})
    prompts = general.get("prompts") or {}
    if similarity is None:
        dot = general.get("similarity_fn_name") == "dot" and "Normalize" not in kinds
        similarity = "dot" if dot else "cosine"
    if query_prefix is None:
        query_prefix = prompts.get("query") or ""
    if passage_prefix is None:
        passage_prefix = prompts.get("document") or prompts.get("passage") or ""
    return EncoderSettings(
        pooling=pooling or _read_pooling(root, modules),
        similarity=similarity,
        normalize=similarity == "cosine",
        max_seq_length=_max_seq_length(folder, config, max_seq_length),
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )


def transformer_folder(folder: str) -> Path:
    """Where the transformer and its tokenizer are: the folder itself, or a subfolder in models of before 2021."""
    modules = _read_json(Path(folder) / "modules.json", [])
    return Path(folder) / (modules[0].get("path") or "") if modules else Path(folder)


def _read_pooling(root: Path, modules: list[dict]) -> str:
    for module in modules:
        if str(module.get("type", "")).endswith("Pooling"):
            config = _read_json(root / module["path"] / "config.json", {})
            if config.get("include_prompt") is False:
                raise InputError(f"{root}: its pooling leaves the prompt's tokens out, which is not supported")
            mode = config.get("pooling_mode")
            chosen = [name for name, flag in POOLING_FLAGS.items() if config.get(flag)]
            chosen += [name for name, other in POOLING_NAMES.items() if other == mode]
            if len(chosen) != 1:
                raise InputError(
                    f"{root}: its pooling is none of {', '.join(POOLING_NAMES)}; choose with --pooling_type"
                )
            return chosen[0]
    return "mean"


def _max_seq_length(folder: str, config: dict, asked: int | None) -> int:
    positions = config.get("max_position_embeddings")
    if positions and config["model_type"] in POSITION_OFFSETS:
        positions -= 2
    if asked is not None:
        if positions and asked > positions:
            raise InputError(f"--max_seq_length {asked}: {folder} takes at most {positions} tokens")
        return asked
    own = _read_json(transformer_folder(folder) / "sentence_bert_config.json", {}).get("max_seq_length")
    if own is None and (Path(folder) / "modules.json").exists():  # sentence-transformers 6 keeps it in the tokenizer
        own = _read_json(transformer_folder(folder) / "tokenizer_config.json", {}).get("model_max_length")
    if not own or own > _NO_LIMIT:
        own = _DEFAULT_MAX_SEQ_LENGTH
    return int(min(own, positions or own))


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def encoder_settings(folder: str, flags: Any) -> EncoderSettings:
    """The settings of a model folder, overridden by the flags of that name (`pooling_type` ...) that are given."""
    return read_settings(
        folder,
        pooling=flags.pooling_type,
        similarity=flags.similarity,
        max_seq_length=flags.max_seq_length,
        query_prefix=flags.query_prefix,
        passage_prefix=flags.passage_prefix,
    )
