"""The arguments that a search varies, and the values that each may take."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import fields, replace
from typing import Any

from rqa_ray.command_line import Parser
from rqa_ray.errors import InputError
from rqa_ray.reports.trials import Choices, Range, Space
from rqa_ray.settings import TrainSettings
from rqa_ray.texts import is_none_of
from rqa_ray.training.arguments import ALIASES, NO_EFFECT, REFUSED
from rqa_ray.training.job import Job, check
from rqa_ray.training.optimizer import check_optimizer

# Arguments that all trials have to share, with the reason for the user.
SHARED = {
    **dict.fromkeys(
        ("model_name_or_path", "model_revision", "max_seq_length", "query_prefix", "passage_prefix")
        + ("query_prompt_name", "passage_prompt_name", "data_mode", "eval_share")
        + ("demo_size", "train_file", "eval_file", "test_file", "full_dataset_file_path", "prepared_path"),
        "it changes the tokenized data, which all trials share; run a search for each",
    ),
    **dict.fromkeys(
        ("max_steps", "num_train_epochs", "eval_steps", "eval_strategy"),
        "every trial sees the same number of pairs, so that they can be compared",
    ),
    **dict.fromkeys(("mine_from", "mine_depth", "teacher"), "all trials share the candidates of BM25"),
    "recipe": "its flags are read before the search; search some of these flags",
    **dict.fromkeys(("finish", "save_adapter"), "only the winner is finished, so it changes no trial"),
    **dict.fromkeys(("per_device_train_batch_size", "batch_size", "global_batch_size"), "use --tune_batch_size A B C"),
    **dict.fromkeys(
        ("output_dir", "storage_path", "num_workers", "cpus_per_worker", "max_failures", "metric_for_best_model")
        + ("async_eval", "write_predictions", "logging_dir", "on_bad_record", "trust_remote_code", "report_to")
        + ("run_project", "run_group", "run_entity", "overwrite_output_dir", "resume", "run_name", "use_cpu")
        + ("predictions_top_k", "fsdp", "homogeneous_batches"),
        "the whole search shares one value",
    ),
}


def parse_space(words: list[str], job: Job, parser: Parser) -> Space:
    """Reads dimensions by argument from words such as `temperature=0.02:0.1:log`.

    Raises:
        InputError: there is no such argument, it cannot be searched, or it cannot take the value.
    """
    space: Space = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not text:
            raise InputError(f"--tune {word}: has to be NAME=A,B,C or NAME=LOW:HIGH or NAME=LOW:HIGH:log")
        name = ALIASES.get(name, (name, ""))[0] or name
        action = parser.flags.get(f"--{name}")
        name = action.dest if action else name  # the main name of an argument with several names
        reason = SHARED.get(name) or REFUSED.get(name) or NO_EFFECT.get(name)
        if reason:
            raise InputError(f"--tune {word}: {name} cannot be searched: {reason}")
        if name in space:
            raise InputError(f"--tune {word}: {name} is given twice")
        space[name] = read_dimension(name, text, job, parser)
    return space


def read_dimension(name: str, text: str, job: Job, parser: Parser) -> Choices | Range:
    """Reads the values that `text` describes; checks each end and each choice like the job's own flag."""
    action = parser.flags.get(f"--{name}")
    where = f"--tune {name}={text}"
    if action is None:
        raise InputError(f"{where}: {parser.unknown(name)}")
    if action.nargs in ("+", "*"):
        raise InputError(f"{where}: --{name} takes a list, and a search varies single values")

    def value_of(part: str) -> Any:
        convert: Any = action.type or str
        try:
            value = convert(part.strip())
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            raise InputError(f"{where}: {part.strip()!r} is no value of --{name}") from None
        if action.choices and value not in action.choices:
            raise InputError(f"{where}: {part.strip()}: {is_none_of(part.strip(), list(map(str, action.choices)))}")
        check(with_values(job, {name: value}))
        return value

    if ":" not in text:
        return Choices(tuple(dict.fromkeys(value_of(part) for part in text.split(","))))
    low_text, high_text, *rest = text.split(":")
    low, high = value_of(low_text), value_of(high_text)
    if rest not in ([], ["log"]) or not all(type(end) in (int, float) for end in (low, high)):
        raise InputError(f"{where}: a range is LOW:HIGH or LOW:HIGH:log, of numbers; a list is A,B,C")
    if low >= high:
        raise InputError(f"{where}: the first end has to be below the second")
    if rest and low <= 0:
        raise InputError(f"{where}: a log-uniform range has to begin above 0")
    return Range(low, high, bool(rest), isinstance(low, int) and isinstance(high, int))


def check_optimizers(space: Space, job: Job) -> None:
    """Raises InputError if a trial's optimizer or schedule cannot be built; tries each value of an argument alone."""
    for name, dimension in space.items():
        for value in dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high):
            check_optimizer(with_values(job, {name: value}).training)


def with_values(job: Job, values: dict[str, Any]) -> Job:
    """Returns the job with other values of some arguments."""
    own = {item.name for item in fields(TrainSettings)}
    settings = replace(job.settings, **{name: value for name, value in values.items() if name in own})
    training = job.training | {name: value for name, value in values.items() if name not in own}
    return replace(job, settings=settings, training=training, notes=[])


def combinations(space: Space) -> list[dict[str, Any]] | None:
    """Returns all points of a space, or None if there is no end of them."""
    lists = [dimension.values for dimension in space.values() if isinstance(dimension, Choices)]
    if len(lists) < len(space):
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]
