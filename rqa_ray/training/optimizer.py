"""Builds the optimizer and the schedule of a run for a single weight, so that wrong arguments are found at once."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

from rqa_ray.errors import InputError, first_line
from rqa_ray.training.arguments import RetrieverTrainingArguments


def check_optimizer(training: dict[str, Any]) -> None:
    """Raises InputError if transformers cannot build the optimizer and the learning rate schedule from the arguments.

    The real TrainingArguments are left to the workers, because they look for devices and other processes.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.optimization import GreedyLR
    from transformers.trainer_optimizer import is_optimizer_factory
    from transformers.training_args import OptimizerNames, ParallelMode

    defaults = {item.name: item.default for item in dataclasses.fields(RetrieverTrainingArguments)}
    args = SimpleNamespace(**defaults | training, parallel_mode=ParallelMode.NOT_DISTRIBUTED)
    weight, where = torch.nn.Linear(1, 1), f"--optim {args.optim}"
    optimizer: Any = torch.optim.SGD(weight.parameters(), lr=args.learning_rate)
    try:
        args.optim = OptimizerNames(args.optim)
        if args.optim_target_modules is None:  # else the optimizer needs modules that only the model has
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, weight)  # type: ignore[arg-type]
            if not is_optimizer_factory(kind):
                optimizer = kind(weight.parameters(), **options)
        where = f"--lr_scheduler_type {args.lr_scheduler_type}"
        options = _options(args.lr_scheduler_kwargs)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, 0, 2, scheduler_specific_kwargs=options)
        if not isinstance(schedule, (torch.optim.lr_scheduler.ReduceLROnPlateau, GreedyLR)):  # these need a metric
            optimizer.step()
            schedule.step()
    except InputError:
        raise
    except Exception as error:  # each optimizer and schedule raises its own kinds
        raise InputError(f"{where}: cannot be used: {first_line(error)}") from None


def _options(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns `--lr_scheduler_kwargs` as transformers reads them."""
    # private: only the real TrainingArguments convert texts in JSON, and none are made here (`check_optimizer`)
    from transformers.training_args import _convert_str_dict

    try:
        options = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise InputError(f"--lr_scheduler_kwargs {given}: not JSON ({error})") from None
    if options is not None and not isinstance(options, dict):
        raise InputError(f"--lr_scheduler_kwargs {given}: has to be an object of names and values")
    return _convert_str_dict(options) if options else options
