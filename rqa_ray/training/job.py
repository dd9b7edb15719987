"""One parsed training command: its settings and training arguments, and the checks that need no files."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqa_ray.command_line import Given, Parser, check_values
from rqa_ray.config import read_config
from rqa_ray.data.share import Share
from rqa_ray.errors import InputError, need_extra
from rqa_ray.evaluation.metrics import LATENCY, metric_names
from rqa_ray.ray_environment import OF_ACCELERATE
from rqa_ray.settings import HYBRID, MINED_FROM, LoraSettings, MiningSettings, TrainSettings
from rqa_ray.texts import is_none_of
from rqa_ray.training.arguments import ALIASES, CHECKS, NO_EFFECT, REFUSED, RetrieverTrainingArguments
from rqa_ray.training.fsdp import check_fsdp

YIELDS = {  # flags of a recipe that are left out where the user gives the other flag, because both do not go together
    "global_batch_size": "per_device_train_batch_size",
    "early_stopping_patience": "async_eval",
}
RECIPES = {"best": Path(__file__).with_name("best.json")}  # files of flags by `--recipe`
LOWEST_RATE_OF_LORA = 5e-5  # learning rate below which a run is warned
RESTARTS_OF_A_RANGE = 8  # default of `--max_failures` for workers whose nodes come and go


@dataclass
class Job:
    """One parsed command: settings, training arguments (without transformers' defaults), and notes for the user."""

    settings: TrainSettings
    training: dict[str, Any]
    resume: str | None = None  # "true", or a checkpoint folder
    notes: list[str] = field(default_factory=list)
    resume_flag: str = "--resume_from_checkpoint true"  # the flag with which the user resumes the run
    command: list[str] = field(default_factory=list, compare=False)  # the words of the command; empty in a notebook
    chose_steps: bool = False  # whether the number of steps follows from the number of pairs
    from_data: dict[str, Any] = field(default_factory=dict)  # values of settings that follow from the data
    location: str = ""  # where the user finds the output; `output_dir` is always a local folder

    def __post_init__(self) -> None:
        self.location = self.location or self.training.get("output_dir") or ""

    @property
    def output_dir(self) -> str:
        return self.training["output_dir"]

    @property
    def num_workers(self) -> tuple[int, int] | int | None:
        """The number of workers that was asked for, or (fewest, most)."""
        asked = self.settings.num_workers
        if not asked:
            return None
        fewest, colon, most = asked.partition(":")
        return (int(fewest), int(most)) if colon and fewest != most else int(fewest)

    @property
    def max_failures(self) -> int:
        default = RESTARTS_OF_A_RANGE if isinstance(self.num_workers, tuple) else 0
        return default if self.settings.max_failures is None else self.settings.max_failures

    @property
    def share(self) -> Share:
        """The share of the training pairs that are trained on."""
        return Share(self.settings.train_share, self.training["seed"])

    @property
    def accumulation_steps(self) -> int:
        return self.training.get("gradient_accumulation_steps", 1)

    def to_config(self) -> dict[str, Any]:
        """Returns flat names and values: a JSON config that repeats the run.

        What follows from the data is left out, because it would bind a run with other data.
        """
        given = {key: value for key, value in dataclasses.asdict(self.settings).items() if value is not None}
        own = {key: value for key, value in given.items() if self.from_data.get(key) != value}
        for name in ("overwrite_output_dir", "json"):  # which change no result
            del own[name]
        return own | self.training | {"output_dir": self.location}


def check(job: Job) -> None:
    """Raises InputError for values that cannot work, as far as this shows without looking at files."""
    settings, training = job.settings, job.training
    if not training["output_dir"]:
        raise InputError("--output_dir is missing: say where the fine-tuned model goes")
    if not settings.model_name_or_path:
        raise InputError("--model_name_or_path is missing: a model folder or a hub name such as BAAI/bge-base-en-v1.5")
    given = settings.given_files()
    if settings.demo_size is not None and given:
        raise InputError(f"--demo_size makes its own data: leave out --{given[0]}, or --demo_size")
    if settings.prepared_path and (given or settings.demo_size is not None):
        raise InputError(f"--prepared_path has all data: leave out --{[*given, 'demo_size'][0]}, or --prepared_path")
    if settings.demo_size is None and not settings.prepared_path:
        settings.check_files()
    if settings.homogeneous_batches and (settings.prepared_path or settings.demo_size is not None):
        only = "prepared_path" if settings.prepared_path else "demo_size"
        raise InputError(f"--homogeneous_batches: needs several training sources, and --{only} has one")
    if settings.homogeneous_batches and settings.data_mode == "streaming":
        raise InputError("--homogeneous_batches: streamed batches mix all files; leave out --data_mode streaming")
    check_values(TrainSettings, vars(settings))
    check_values(RetrieverTrainingArguments, training, CHECKS)
    if settings.early_stopping_patience and settings.async_eval:
        raise InputError("--early_stopping_patience: an evaluation of --async_eval ends too late to stop training")
    check_fsdp(settings, training)
    if training.get("bf16") and training.get("fp16"):
        raise InputError("--bf16 and --fp16: choose one")
    settings.check_loss()
    job.notes += _check_mining(settings) + _check_lora(settings, training["learning_rate"])
    training["metric_for_best_model"] = _metric(training["metric_for_best_model"])
    if settings.learn_temperature and training["metric_for_best_model"] == "eval_loss":
        raise InputError("--learn_temperature: eval_loss depends on it; choose another --metric_for_best_model")
    if (settings.similarity or "cosine") == "cosine" and settings.temperature >= 0.5:
        job.notes.append(
            f"warning: --temperature {settings.temperature:g} leaves a nearly flat loss with cosine similarity; "
            "0.02 to 0.1 is usual, or --similarity dot"
        )


def _check_mining(settings: TrainSettings) -> list[str]:
    """Returns notes for the user.

    Raises:
        InputError: values that cannot work together.
    """
    number, own = settings.mine_negatives, settings.negatives_per_question
    if settings.mine_every and not number:
        raise InputError(f"--mine_every {settings.mine_every:g}: needs --mine_negatives N, how many a round mines")
    if number and not (own or settings.hard_neg_ratio):
        raise InputError(f"--mine_negatives {number}: no batch would have them; give --negatives_per_question K too")
    if number and own > number:
        raise InputError(f"--negatives_per_question {own}: is more than --mine_negatives {number}")
    if number and "bm25" in (settings.mine_from or MINED_FROM):
        asked = "--mine_from bm25" if settings.mine_from else f"--mine_negatives {number} without --mine_from dense"
        need_extra(asked, "bm25", "bm25s")
    teacher, weight = settings.teacher, settings.distill_weight
    if teacher and teacher != HYBRID:
        raise InputError(
            f"--teacher {teacher}: training itself can only ask {HYBRID}; run jobs/mine.py --teacher {teacher}, and "
            "train on the train.jsonl that it writes with --distill_weight 0.5"
        )
    if number and teacher:
        need_extra(f"--teacher {HYBRID}", "bm25", "bm25s")
    if number and weight and not teacher:
        raise InputError(f"--distill_weight {weight:g}: needs --teacher {HYBRID} beside --mine_negatives {number}")
    notes = [] if number else _idle(settings, MiningSettings, "--mine_negatives")
    if weight and not own:
        notes.append(
            f"warning: --distill_weight {weight:g} without --negatives_per_question: few questions of a batch meet "
            "the hard negatives that the teacher has scored"
        )
    if settings.mine_every and settings.async_eval:
        notes.append("note: --async_eval knows too late which model is worse, so every round of --mine_every is used")
    return notes


def _check_lora(settings: TrainSettings, learning_rate: float) -> list[str]:
    """Returns notes for the user; raises InputError if peft is not installed."""
    if not settings.lora_r:
        return _idle(settings, LoraSettings, "--lora_r")
    need_extra(f"--lora_r {settings.lora_r}", "lora", "peft")
    if learning_rate < LOWEST_RATE_OF_LORA:
        return [f"warning: --learning_rate {learning_rate:g} is low for LoRA; 1e-4 to 1e-3 is usual"]
    return []


def _idle(settings: TrainSettings, kind: type, needed: str) -> list[str]:
    """Returns a note about the given settings of a kind, which have no effect without the flag that they need."""
    given = [item.name for item in dataclasses.fields(kind) if getattr(settings, item.name) != item.default]
    return [f"{', '.join(f'--{name}' for name in given)}: no effect without {needed}"] if given else []


def _metric(name: str | None) -> str:
    """Returns the full name of the metric that chooses the best model; the user may leave out `eval_`."""
    names = [item for item in metric_names("eval") if not item.endswith(LATENCY)]
    for candidate in (name, f"eval_{name}"):
        if candidate in names:
            return candidate
    reason = "test never selects" if name and name.startswith("test_") else "no such metric"
    raise InputError(f"--metric_for_best_model {name}: {reason}; {is_none_of(f'eval_{name}', names)}")


def training_parser(about: str | None, *more: type) -> Parser:
    """Returns the parser of all training flags, and of those of `more` dataclasses; `about` comes first in `-h`."""
    rare = "--eval_share, --homogeneous_batches, --json, LoRA, Matryoshka, and TrainingArguments"
    of_train = "the flags of jobs/train.py, which work here too, and transformers' TrainingArguments"
    last = f"-h all adds {of_train if more else rare}."
    parser = Parser(about, *more, RetrieverTrainingArguments, TrainSettings, short=more, last=last)
    for said, reasons in (("refused", REFUSED), ("no effect", NO_EFFECT)):
        for name, reason in reasons.items():
            parser.flags[f"--{name}"].help = f"{said}: {reason}"
    for name, (_, why) in ALIASES.items():  # for -h alone: `_translate_aliases` comes first
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, nargs="*", help=why)
    return parser


def parse_job(given: Given, about: str | None = None) -> Job:
    """Makes a job from the words of a command line, or from keyword arguments; `about` comes first in `-h`.

    Raises:
        InputError: unknown names, or values that cannot work.
    """
    return parse_with(given, training_parser(about))[0]


def parse_with(asked: Given, parser: Parser) -> tuple[Job, dict[str, Any]]:
    """Does `parse_job`, and also returns the parser's other values by name."""
    words, notes = _translate_aliases(parser.words(asked))
    words = _recipe(words, parser) + words
    values = parser.read(words)
    settings = TrainSettings(**{item.name: values.pop(item.name) for item in dataclasses.fields(TrainSettings)})
    given = _given(words, parser)
    defaults = {item.name: item for item in dataclasses.fields(RetrieverTrainingArguments)}
    own_defaults = set(RetrieverTrainingArguments.__annotations__)
    further = {name: values.pop(name) for name in list(values) if name not in defaults}
    training = {name: value for name, value in values.items() if name in own_defaults or name in given}
    for name in sorted(given & REFUSED.keys()):
        if values[name] not in (None, False, defaults[name].default, "no", ""):
            raise InputError(f"--{name} {values[name]}: {REFUSED[name]}")
        training.pop(name)
    for name in sorted(given & NO_EFFECT.keys()):
        notes.append(f"--{name} has no effect: {NO_EFFECT[name]}")
        training.pop(name)
    if "num_train_epochs" in given and training["max_steps"] > 0:
        notes.append(f"--num_train_epochs has no effect beside --max_steps {training['max_steps']}")
    resume = training.pop("resume_from_checkpoint", None)
    if resume is not None and resume.lower() == "false":
        resume = None
    outside = sorted(name for name in os.environ if name.startswith(OF_ACCELERATE))
    notes += [f"{name}={os.environ[name]} has no effect: training reads its arguments alone" for name in outside]
    command = [] if isinstance(asked, Mapping) else [sys.argv[0], *asked]
    job = Job(settings, training, "true" if resume and resume.lower() == "true" else resume, notes, command=command)
    check(job)
    return job, further


def _recipe(words: list[str], parser: Parser) -> list[str]:
    """Returns the words of the recipe that the user's words name; the user's come after them and win."""
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chosen.add_argument("--recipe", nargs="?")
    name = chosen.parse_known_args(words)[0].recipe
    if name not in RECIPES:
        return []
    values, names = parser.read(words), _given(words, parser)
    given = {name: values[name] for name in names if name in values}
    flags = {flag: value for flag, value in read_config(str(RECIPES[name])).items() if YIELDS.get(flag) not in given}
    if given.get("mine_negatives") == 0:  # then no question has negatives of its own, unless the user says so
        flags.pop("negatives_per_question", None)
    if given.get("negatives_per_question") == 0 and not given.get("hard_neg_ratio"):  # no batch would have those mined
        flags.pop("mine_negatives", None)
    return parser.flags_of(flags)


def _given(words: list[str], parser: Parser) -> set[str]:
    """Returns the names of the settings that words of a command line give."""
    flags = parser.flags  # also --no_NAME, whose destination is NAME
    return {flags[word.split("=")[0]].dest for word in words if word.split("=")[0] in flags}


def _translate_aliases(words: list[str]) -> tuple[list[str], list[str]]:
    """Replaces names that transformers dropped; returns a note for each."""
    translated: list[str] = []
    notes: list[str] = []
    dropping = False
    for word in words:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        name = name.replace("-", "_")
        if name in ALIASES:
            successor, why = ALIASES[name]
            notes.append(f"--{name} {why}")
            dropping = successor is None and not equals
            translated += [f"--{successor}{equals}{value}"] if successor else []
        elif dropping and not word.startswith("--"):
            dropping = False
        else:
            dropping = False
            translated.append(word)
    return translated, notes
