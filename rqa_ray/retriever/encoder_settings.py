"""Reads the settings of a model (pooling, lengths, prefixes ...) from the sentence-transformers files in its folder.

The files are read as plain JSON. So a process that only tokenizes needs neither torch nor sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError
from rqa_ray.places import read_any_json
from rqa_ray.retriever.model_types import model_type
from rqa_ray.texts import is_none_of

# sentence-transformers' names of poolings, in the order of its output, each with the flag that versions before 6
# wrote.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
HEADS = ("Dense", "LayerNorm")  # modules with weights that may follow a transformer
SIMILARITIES = ("cosine", "dot")
# Modules that need inputs which our forward pass does not make: all layers, token ids, or a task.
_UNTRAINABLE = {"Asym", "CNN", "LSTM", "MultiVectorMask", "Router", "WeightedLayerPooling", "WordWeights"}
# Keys that change the inputs or the model, and that we cannot keep.
_TRANSFORMER_KEYS = set(
    "config_args config_kwargs model_args model_kwargs processing_kwargs processor_kwargs query_expansion "
    "tokenizer_args tokenizer_name_or_path".split()
)
_DEFAULT_MAX_SEQ_LENGTH = 512  # for a folder that names no length; encoders with a long context take --max_seq_length
_NO_LIMIT = 1_000_000_000  # tokenizers write 10^30 for no limit


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of a model that are saved with its weights."""

    pooling: str = "mean"  # a name in POOLING_FLAGS, or several with + between them, whose results are concatenated
    similarity: str = "cosine"
    normalize: bool = True  # whether the last module scales embeddings to unit length
    max_seq_length: int = _DEFAULT_MAX_SEQ_LENGTH  # tokens
    query_prefix: str = ""
    passage_prefix: str = ""
    query_length: int | None = None  # limit for questions, in place of max_seq_length (tokens)
    document_length: int | None = None  # limit for passages (tokens)
    include_prompt: bool = True  # whether pooling counts the tokens of prefixes
    lower_case: bool = False
    truncate_dim: int | None = None  # embeddings are cut to this number of dimensions

    def describe(self) -> str:
        """Returns one line about the settings for the start of a run."""
        pooling = {"lasttoken": "last token"}.get(self.pooling, self.pooling)
        cut = f", cut to {self.truncate_dim} dimensions" if self.truncate_dim else ""
        prefixes = f", prefixes {self.query_prefix!r} / {self.passage_prefix!r}" if self.has_prefixes else ""
        return f"{pooling} pooling{cut}, {self.similarity} similarity, up to {self.max_seq_length} tokens{prefixes}"

    @property
    def has_prefixes(self) -> bool:
        return bool(self.query_prefix or self.passage_prefix)

    @property
    def unit_length(self) -> bool:
        """Whether embeddings have unit length."""
        return self.similarity == "cosine" or (self.normalize and not self.truncate_dim)


@dataclass(frozen=True)
class ModelSpec:
    """A model folder with its settings: what a process needs to tokenize or to embed."""

    folder: str
    settings: EncoderSettings
    trust_remote_code: bool = False
    copy: Any = None  # copy of the folder for nodes without it, see `model_copies.bring_model`
    prompts: tuple[tuple[str, str], ...] = ()  # names and texts that the trained model gets beside its own prompts
    tokenizer: bytes = b""  # pickled, see `token_tables.with_tokenizer`


def read_settings(
    folder: str,
    *,
    pooling: str | None = None,
    similarity: str | None = None,
    max_seq_length: int | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    query_prompt_name: str | None = None,
    passage_prompt_name: str | None = None,
) -> EncoderSettings:
    """Reads the settings of a model folder from its sentence-transformers files.

    Arguments that are given override them.

    The prefixes are the prompts that sentence-transformers puts before questions and passages: `query` and
    `document`, if no other names are given. Its `encode_document` would also look for `passage` and `corpus`, but
    always finds a `document`, if only an empty one.

    Raises:
        InputError: the folder is no model folder, it has settings or modules that are not supported, the model
            cannot take the length, or the model has no prompt of a given name.
    """
    root, config = Path(folder), model_config(folder)
    modules = read_any_json(root / "modules.json", [])
    general = read_any_json(root / "config_sentence_transformers.json", {})
    transformer: dict[str, Any] = next((read_any_json(path, {}) for path in _transformer_settings(folder)), {})
    kinds = [_kind(module) for module in modules]
    _refuse_what_is_not_honored(folder, kinds, general, transformer)
    own_similarity = general.get("similarity_fn_name") or "cosine"
    if similarity is None and own_similarity not in SIMILARITIES:
        raise InputError(f"{folder}: compares by {own_similarity}; choose --similarity cosine or dot")
    similarity = similarity or own_similarity
    poolings = [read_any_json(root / part["path"] / "config.json", {}) for part in modules if _kind(part) == "Pooling"]
    pooling_config: dict[str, Any] = poolings[0] if poolings else {}
    limit, positions = _max_seq_length(folder, config, transformer, max_seq_length), _positions(config)
    lengths = {name: transformer.get(name) for name in ("query_length", "document_length")}
    for name, length in lengths.items():
        if length and positions and length > positions:
            raise InputError(f"{folder}: its {name} is {length}, but its model takes at most {positions} tokens")
        lengths[name] = min(length, max_seq_length or length) if length else None
    return EncoderSettings(
        pooling="lasttoken" if pooling == "last" else pooling or _pooling(folder, config, modules, pooling_config),
        similarity=similarity,
        # If the user replaces the folder's cosine by a dot product, vectors may have any length.
        normalize=similarity == "cosine" or (own_similarity == "dot" and kinds[-1:] == ["Normalize"]),
        max_seq_length=limit,
        query_prefix=_prefix(folder, "query", query_prefix, query_prompt_name, "query"),
        passage_prefix=_prefix(folder, "passage", passage_prefix, passage_prompt_name, "document"),
        include_prompt=pooling_config.get("include_prompt", True),
        lower_case=bool(transformer.get("do_lower_case")),
        truncate_dim=general.get("truncate_dim"),
        **lengths,
    )


def stored_prompts(folder: str) -> dict[str, str]:
    """Returns the texts of the prompts that a model folder has, by name."""
    prompts = read_any_json(Path(folder) / "config_sentence_transformers.json", {}).get("prompts") or {}
    return {name: text or "" for name, text in prompts.items()}


def unused_prompt(folder: str) -> tuple[str, str] | None:
    """Returns name and text of a prompt that sounds meant for passages, but that no passage gets; None without one."""
    prompts = stored_prompts(folder)
    return next(((name, prompts[name]) for name in ("passage", "corpus") if prompts.get(name)), None)


def _prefix(folder: str, kind: str, given: str | None, name: str | None, default_name: str) -> str:
    """Returns the prefix of questions or passages: the given text, else the model's prompt of the given name."""
    prompts, flag = stored_prompts(folder), f"--{kind}_prompt_name {name}"
    if name is None:
        return prompts.get(default_name, "") if given is None else given
    if given is not None:
        raise InputError(f"{flag}: --{kind}_prefix {given!r} gives a prefix too; leave one of them out")
    if name not in prompts:
        what = is_none_of(name, list(prompts)) if prompts else f"choose --{kind}_prefix"
        raise InputError(f"{flag}: {folder} has no such prompt; {what}")
    return prompts[name]


def model_config(folder: str) -> dict[str, Any]:
    """Reads the transformer's `config.json`; raises InputError if there is none."""
    config = read_any_json(transformer_folder(folder) / "config.json", None)
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{folder}: not a model folder, it has no config.json with a model_type; pass one that has")
    return config


def transformer_folder(folder: str) -> Path:
    """Returns the folder of the transformer and its tokenizer: a subfolder in models before 2021, else `folder`."""
    return next(iter(module_folders(folder)))


def module_folders(folder: str) -> list[Path]:
    """Returns the folders of a model's modules, the transformer's first."""
    return [path for _, path in modules_of(folder)]


def modules_of(folder: str) -> list[tuple[str, Path]]:
    """Returns the kind and the folder of each module of a model, the transformer's first."""
    modules = read_any_json(Path(folder) / "modules.json", [])
    found = [(_kind(module), Path(folder) / (module.get("path") or "")) for module in modules]
    return found or [("Transformer", Path(folder))]


def heads(read: Callable[[str], Any]) -> list[str]:
    """Describes the modules with weights behind a model's transformer, by kind and sizes.

    `read` reads a JSON file by its path in the model's folder, and returns None if there is none.
    """
    found = []
    for module in read("modules.json") or []:
        if _kind(module) in HEADS:
            config = read(f"{module['path']}/config.json") or {}
            sizes = [f"{name} {value}" for name, value in sorted(config.items()) if type(value) is int]
            found.append(f"{_kind(module)} ({', '.join(sizes)})")
    return found


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _transformer_settings(folder: str) -> list[Path]:
    """Finds `sentence_bert_config.json`; early versions put the kind of model into this name."""
    return sorted(transformer_folder(folder).glob("sentence_*_config.json"))


def _refuse_what_is_not_honored(
    folder: str, kinds: list[str], general: dict[str, Any], transformer: dict[str, Any]
) -> None:
    kind = general.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise InputError(f"{folder}: is a {kind}; only a SentenceTransformer or a bare encoder can be used")
    if kinds and kinds[0] != "Transformer":
        raise InputError(f"{folder}: its first module is {kinds[0]}; only a Transformer can be used")
    unknown = sorted(_UNTRAINABLE & set(kinds))
    if unknown:
        raise InputError(f"{folder}: has the module {', '.join(unknown)}, which is not supported")
    unknown = sorted(name for name in _TRANSFORMER_KEYS if transformer.get(name))
    modalities = transformer.get("modality_config") or {"text": {"method": "forward"}}
    if "message" in modalities or modalities.get("text", {}).get("method") != "forward":
        unknown.append("modality_config")
    if transformer.get("transformer_task", "feature-extraction") != "feature-extraction":
        unknown.append("transformer_task")
    if unknown:
        raise InputError(f"{folder}: its sentence_bert_config.json sets {', '.join(unknown)}, which is not supported")


def _pooling(folder: str, config: dict, modules: list[dict], pooling: dict[str, Any]) -> str:
    """Returns the pooling of a folder.

    A bare causal language model pools its last token, as in sentence-transformers.
    """
    mode = pooling.get("pooling_mode")
    chosen = [mode] if isinstance(mode, str) else mode
    chosen = chosen or [name for name, flag in POOLING_FLAGS.items() if pooling.get(flag)]
    if set(chosen) - POOLING_FLAGS.keys():
        raise InputError(f"{folder}: its pooling {'+'.join(chosen)} is unknown; choose with --pooling_type")
    if not modules and str(*(config.get("architectures") or [""])[:1]).endswith("ForCausalLM"):
        return "lasttoken" if config.get("is_causal", True) else "mean"
    return "+".join(chosen) or "mean"


def _positions(config: dict[str, Any]) -> int | None:
    """Returns how many tokens a model has positions for; None where it has no such limit."""
    kind, positions = config["model_type"], config.get("max_position_embeddings")
    if kind.startswith(("gpt", "openai-gpt", "ctrl", "codegen")):  # T5 writes n_positions too, but has no such limit
        positions = positions or config.get("n_positions")
    if positions and model_type(kind).positions_after_padding:
        padding = config.get("pad_token_id")
        positions -= 2 if padding is None else padding + 1
    return positions if positions and positions > 0 else None


def _max_seq_length(folder: str, config: dict, transformer: dict, asked: int | None) -> int:
    positions = _positions(config)
    if asked is not None:
        if positions and asked > positions:
            raise InputError(f"--max_seq_length {asked}: {folder} takes at most {positions} tokens")
        return asked
    own = transformer.get("max_seq_length")
    # sentence-transformers 6 keeps the limit in the tokenizer
    if own is None and (Path(folder) / "modules.json").exists():
        own = read_any_json(transformer_folder(folder) / "tokenizer_config.json", {}).get("model_max_length")
    if not own or own > _NO_LIMIT:
        own = _DEFAULT_MAX_SEQ_LENGTH
    return int(min(own, positions or own))


def encoder_settings(folder: str, flags: Any) -> EncoderSettings:
    """Reads the settings of a model folder. The flags `pooling_type`, `similarity`... override them if given."""
    names = ("query_prefix", "passage_prefix", "query_prompt_name", "passage_prompt_name")
    return read_settings(
        folder,
        pooling=flags.pooling_type,
        similarity=flags.similarity,
        max_seq_length=flags.max_seq_length,
        **{name: getattr(flags, name) for name in names},
    )
