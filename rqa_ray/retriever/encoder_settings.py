"""What belongs to a model beside its weights, as the sentence-transformers files of its folder say it.

Read as plain JSON, so that processes which only tokenize need neither torch nor sentence-transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError

# sentence-transformers' names of its poolings, and how its versions before 6 wrote them, in the order of its output.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
SIMILARITIES = ("cosine", "dot")
# Modules that read what our forward pass does not give them: all layers, token ids, or a task.
_UNTRAINABLE = {"Asym", "CNN", "LSTM", "MultiVectorMask", "Router", "WeightedLayerPooling", "WordWeights"}
# They change the inputs or the model, and would be lost.
_TRANSFORMER_KEYS = set(
    "config_args config_kwargs model_args model_kwargs processing_kwargs processor_kwargs query_expansion "
    "tokenizer_args tokenizer_name_or_path".split()
)
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_DEFAULT_MAX_SEQ_LENGTH = 512  # for a folder that does not say; long-context encoders take --max_seq_length
_NO_LIMIT = 1_000_000_000  # tokenizers write 10^30 where there is none
# Their positions start behind the padding index.
POSITION_OFFSETS = set(
    "camembert data2vec-text esm ibert lilt longformer luke mpnet roberta roberta-prelayernorm xlm-roberta "
    "xlm-roberta-xl xmod".split()
)


@dataclass(frozen=True)
class EncoderSettings:
    """What belongs to a model beside its weights, and is saved with it."""

    pooling: str = "mean"  # a name of POOLING_FLAGS; with + between them several, whose results are joined
    similarity: str = "cosine"
    normalize: bool = True  # whether the last module makes unit length
    max_seq_length: int = _DEFAULT_MAX_SEQ_LENGTH  # tokens
    query_prefix: str = ""
    passage_prefix: str = ""
    query_length: int | None = None  # of questions, in place of max_seq_length (tokens)
    document_length: int | None = None  # of passages
    include_prompt: bool = True  # whether the tokens of prefixes are pooled
    lower_case: bool = False
    truncate_dim: int | None = None  # embeddings are cut to so many dimensions

    def describe(self) -> str:
        """One line for the start of a run."""
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
    """A model folder and how its model is used: what a process needs to tokenize or to embed."""

    folder: str
    settings: EncoderSettings
    trust_remote_code: bool = False
    copy: Any = None  # of the folder, for nodes that lack it: `model_copies.bring_model`


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

    Prefixes are the prompts that `encode_query` and `encode_document` are documented to use: `query`, and the first of
    `document`, `passage` and `corpus` that has a text.

    Raises:
        InputError: not a model folder, one with settings or modules that are not honored here, or a length that the
            model cannot take.
    """
    root, config = Path(folder), model_config(folder)
    modules = _read_json(root / "modules.json", [])
    general = _read_json(root / "config_sentence_transformers.json", {})
    transformer: dict[str, Any] = next((_read_json(path, {}) for path in _transformer_settings(folder)), {})
    kinds = [_kind(module) for module in modules]
    _refuse_what_is_not_honored(folder, kinds, general, transformer)
    own_similarity = general.get("similarity_fn_name") or "cosine"
    if similarity is None and own_similarity not in SIMILARITIES:
        raise InputError(f"{folder}: compares by {own_similarity}; choose --similarity cosine or dot")
    similarity = similarity or own_similarity
    poolings = [_read_json(root / part["path"] / "config.json", {}) for part in modules if _kind(part) == "Pooling"]
    pooling_config: dict[str, Any] = poolings[0] if poolings else {}
    prompts = general.get("prompts") or {}
    if query_prefix is None:
        query_prefix = prompts.get("query") or ""
    if passage_prefix is None:
        passage_prefix = next((prompts[name] for name in _PASSAGE_PROMPTS if prompts.get(name)), "")
    limit, positions = _max_seq_length(folder, config, transformer, max_seq_length), _positions(config)
    lengths = {name: transformer.get(name) for name in ("query_length", "document_length")}
    for name, length in lengths.items():
        if length and positions and length > positions:
            raise InputError(f"{folder}: its {name} is {length}, but its model takes at most {positions} tokens")
        lengths[name] = min(length, max_seq_length or length) if length else None
    return EncoderSettings(
        pooling="lasttoken" if pooling == "last" else pooling or _pooling(folder, config, modules, pooling_config),
        similarity=similarity,
        # A dot product that the user chose in place of the folder's cosine is one of vectors of any length.
        normalize=similarity == "cosine" or (own_similarity == "dot" and kinds[-1:] == ["Normalize"]),
        max_seq_length=limit,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        include_prompt=pooling_config.get("include_prompt", True),
        lower_case=bool(transformer.get("do_lower_case")),
        truncate_dim=general.get("truncate_dim"),
        **lengths,
    )


def model_config(folder: str) -> dict[str, Any]:
    """The transformer's `config.json`; InputError where there is none."""
    config = _read_json(transformer_folder(folder) / "config.json", None)
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{folder}: not a model folder, it has no config.json with a model_type; pass one that has")
    return config


def transformer_folder(folder: str) -> Path:
    """Where the transformer and its tokenizer are: the folder itself, or a subfolder in models of before 2021."""
    return next(iter(module_folders(folder)))


def module_folders(folder: str) -> list[Path]:
    """The folders of a model's modules, the transformer's first."""
    modules = _read_json(Path(folder) / "modules.json", [])
    return [Path(folder) / (module.get("path") or "") for module in modules] or [Path(folder)]


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _transformer_settings(folder: str) -> list[Path]:
    """`sentence_bert_config.json`, which early versions named after the kind of model."""
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
        raise InputError(f"{folder}: has the module {', '.join(unknown)}, which needs inputs that are not made here")
    unknown = sorted(name for name in _TRANSFORMER_KEYS if transformer.get(name))
    modalities = transformer.get("modality_config") or {"text": {"method": "forward"}}
    if "message" in modalities or modalities.get("text", {}).get("method") != "forward":
        unknown.append("modality_config")
    if transformer.get("transformer_task", "feature-extraction") != "feature-extraction":
        unknown.append("transformer_task")
    if unknown:
        raise InputError(f"{folder}: its sentence_bert_config.json sets {', '.join(unknown)}, which is not honored")


def _pooling(folder: str, config: dict, modules: list[dict], pooling: dict[str, Any]) -> str:
    """The pooling of a folder. A bare causal language model pools its last token, as in sentence-transformers."""
    mode = pooling.get("pooling_mode")
    chosen = [mode] if isinstance(mode, str) else mode
    chosen = chosen or [name for name, flag in POOLING_FLAGS.items() if pooling.get(flag)]
    if set(chosen) - POOLING_FLAGS.keys():
        raise InputError(f"{folder}: its pooling {'+'.join(chosen)} is unknown; choose with --pooling_type")
    if not modules and str(*(config.get("architectures") or [""])[:1]).endswith("ForCausalLM"):
        return "lasttoken" if config.get("is_causal", True) else "mean"
    return "+".join(chosen) or "mean"


def _positions(config: dict[str, Any]) -> int | None:
    """The most tokens that a model has positions for; None where there is no such number."""
    kind, positions = config["model_type"], config.get("max_position_embeddings")
    if kind.startswith(("gpt", "openai-gpt", "ctrl", "codegen")):  # T5 writes n_positions, and has no such limit
        positions = positions or config.get("n_positions")
    if positions and kind in POSITION_OFFSETS:
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
