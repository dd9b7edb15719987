"""Reads and writes model folders with sentence-transformers, and refuses weights that do not fit exactly.

The input is the folder of a sentence-transformers model, or of a bare Hugging Face encoder, which gets a pooling. The
output is the folder of a sentence-transformers model with all settings of the input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rqa_ray.errors import InputError, first_line
from rqa_ray.places import write_json
from rqa_ray.retriever.adapters import merged
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.encoder_settings import EncoderSettings, transformer_folder
from rqa_ray.retriever.weights import refuse_not_finite


def load_encoder(
    folder: str,
    settings: EncoderSettings,
    dropout: float | None = None,
    trust_remote_code: bool = False,
    bf16: bool = False,
) -> Encoder:
    """Loads the encoder of a folder on the CPU, in fp32 or bf16, in training mode.

    `dropout` overrides the model's own.

    Raises:
        InputError: weights are missing, not finite or of another shape, or the folder cannot be loaded.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes only a moment
    # The code that a folder asks for may be in another repository.
    options: dict[str, Any] = {"local_files_only": not trust_remote_code, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(str(transformer_folder(folder)), **options)
        own_dropout = {} if dropout is None else _dropout_of(config)
        options["config_kwargs"] = dict.fromkeys(own_dropout, dropout)
        options["model_kwargs"] = {"dtype": torch.bfloat16 if bf16 else torch.float32}
        model = _open(folder, settings, options)
        for name, value in model.named_parameters():
            refuse_not_finite(folder, name, value.detach())
        _apply(settings, model, folder)
    except InputError:
        raise
    except Exception as error:  # several libraries read the folder, each with its own kinds of errors
        raise InputError(f"{folder}: the model cannot be loaded: {first_line(error)}") from None
    encoder = Encoder(model, settings).train()
    encoder.own_dropout = own_dropout
    if dropout is not None:
        for part in torch.nn.ModuleList(encoder.head).modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = dropout
    return encoder


def load_weights(encoder: Encoder, folder: str, trust_remote_code: bool = False) -> None:
    """Copies the weights of a saved folder into an encoder of the same kind; names and shapes have to be the same.

    Raises:
        InputError: the weights belong to another encoder.
    """
    encoder.load_state_dict(read_weights(encoder, folder, trust_remote_code), strict=True)


def read_weights(encoder: Encoder, folder: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Returns the tensors of a saved folder by name, on the CPU; names and shapes have to be those of the encoder.

    Raises:
        InputError: the weights belong to another encoder.
    """
    saved = load_encoder(folder, encoder.settings, trust_remote_code=trust_remote_code).state_dict()
    own = encoder.state_dict()
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (own, saved)]
    differ = sorted(name for name in own.keys() | saved.keys() if shapes[0].get(name) != shapes[1].get(name))
    if differ:
        raise InputError(f"{folder}: its weights are of another model: {', '.join(differ[:3])}")
    return saved


def save_encoder(encoder: Encoder, folder: str) -> None:
    """Writes weights, tokenizer and settings, so that `SentenceTransformer(folder)` gives the same embeddings.

    The weights of adapters are merged into those of the model.
    """
    config, used = encoder.transformer.config, {}
    for name, value in encoder.own_dropout.items():  # the dropout of this run does not belong to the model
        used[name] = getattr(config, name)
        setattr(config, name, value)
    with merged(encoder.transformer):
        encoder.model.save_pretrained(folder, create_model_card=False)
    for name, value in used.items():
        setattr(config, name, value)


def save_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    """Adds prompts to a saved folder, so that `SentenceTransformer(folder).encode(texts, prompt_name=name)` works."""
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["prompts"] |= prompts
    write_json(path, config)


def _open(folder: str, settings: EncoderSettings, options: dict[str, Any]) -> Any:
    """Opens the SentenceTransformer of a folder; adds a pooling to a bare transformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import TRANSFORMER_TASK_DEFAULTS
    from sentence_transformers.sentence_transformer.modules import Pooling

    from rqa_ray.retriever.strict_transformer import StrictTransformer

    path = Path(folder) / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    model: Any
    if modules:
        kind = modules[0]["type"]
        # If the folder brings its own code, that code loads the weights.
        strict = {kind: StrictTransformer} if kind.startswith("sentence_transformers.") else {}
        # private: the constructor takes no other class for a module of the folder
        model = SentenceTransformer._load_with_module_classes(folder, strict, device="cpu", **options)
    else:
        shared = {name: options[name] for name in ("local_files_only", "trust_remote_code")}
        names = ("model_kwargs", "config_kwargs", "processor_kwargs")
        kwargs = {name: shared | options.get(name, {}) for name in names}
        text, output = TRANSFORMER_TASK_DEFAULTS["feature-extraction"]
        transformer = StrictTransformer(folder, modality_config=text, module_output_name=output, **kwargs)
        model = SentenceTransformer(modules=[transformer], device="cpu", local_files_only=True)
    if len(model) == 1:
        model.append(Pooling(model[0].get_embedding_dimension(), _modes(settings)))
    return model


def _apply(settings: EncoderSettings, model: Any, folder: str) -> None:
    """Changes a SentenceTransformer to what the settings say."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    for place, own in enumerate(model):
        if isinstance(own, Pooling) and _modes(settings) != own.pooling_mode:
            model[place] = other = Pooling(own.embedding_dimension, _modes(settings), own.include_prompt)
            widths = own.get_embedding_dimension(), other.get_embedding_dimension()
            if widths[0] != widths[1] and any(isinstance(module, Dense) for module in model):
                raise InputError(
                    f"{folder}: its Dense module takes {widths[0]} numbers, and {settings.pooling} pooling gives "
                    f"{widths[1]}; leave out --pooling_type"
                )
    if settings.normalize and not isinstance(model[-1], Normalize):
        model.append(Normalize())
    elif not settings.normalize and isinstance(model[-1], Normalize):
        del model[-1]
    model.similarity_fn_name = settings.similarity
    model.max_seq_length = settings.max_seq_length
    model[0].query_length, model[0].document_length = settings.query_length, settings.document_length
    if settings.lower_case:
        model[0].config_keys = [*model[0].config_keys, "do_lower_case"]  # so that the setting is saved
    model.prompts |= {"query": settings.query_prefix, "document": settings.passage_prefix}
    tokenizer = model.tokenizer
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{folder}: its tokenizer has neither a padding token nor an end-of-text token")
        # without a padding token no batch could be padded; users of such models do the same
        tokenizer.pad_token = tokenizer.eos_token
    if hasattr(model[0].model, "wpe") or hasattr(model[0].model, "positions_embed"):
        # GPT-2 counts positions from the left end, padding included.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # only the second of these is saved


def _modes(settings: EncoderSettings) -> str | tuple[str, ...]:
    modes = tuple(settings.pooling.split("+"))
    return modes[0] if len(modes) == 1 else modes


def _dropout_of(config: Any) -> dict[str, float]:
    """Returns every dropout probability of a config, by name."""
    return {
        name: value
        for name, value in vars(config).items()
        if "drop" in name and "layer" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
