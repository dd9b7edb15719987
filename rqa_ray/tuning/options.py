"""The flags of jobs/tune.py that jobs/train.py does not have, and the search that they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rqa_ray.command_line import Given, check_values
from rqa_ray.errors import InputError
from rqa_ray.fields import ABOVE_0, OUTPUT, TRIALS, Check, at_least
from rqa_ray.reports.trials import Choices, Space
from rqa_ray.training.job import Job, parse_with, training_parser
from rqa_ray.tuning.space import combinations, parse_space, read_dimension

RESUME_FLAG = "--resume"


@dataclass(kw_only=True)
class TuneSettings:
    """The settings of jobs/tune.py, in addition to those of jobs/train.py."""

    tune_learning_rate: list[float] | None = TRIALS.setting(
        None,
        "Two learning rates: the ends of a range, drawn log-uniformly. More: a list.",
        unset="a tenth to ten times --learning_rate, if nothing else is searched",
    )
    tune_batch_size: list[int] | None = TRIALS.setting(
        None, "Global batch sizes: a list.", unset="half, once and twice the job's own, if nothing else is searched"
    )
    tune: list[str] | None = TRIALS.setting(
        None,
        "Other numbers or choices. A list: temperature=0.02,0.05; a range: hard_neg_ratio=0:0.5, or of its "
        "logarithm: temperature=0.02:0.1:log.",
        action="extend",
        metavar="NAME=VALUES",
    )
    num_samples: int = TRIALS.setting(10, "Trials, at most; grid makes one of each combination.", at_least(1))
    time_budget_s: float | None = TRIALS.setting(None, "End trials that still run after so long (seconds).", ABOVE_0)
    scheduler: Literal["asha", "none"] = TRIALS.setting(
        "asha", "asha ends a trial that is below the median of the others at the same number of pairs."
    )
    search_alg: Literal["random", "optuna", "grid"] = TRIALS.setting("random", "How values are chosen.")
    max_concurrent_trials: str = TRIALS.setting(
        "auto",
        "Trials at a time; auto: as many as the cluster holds.",
        Check(lambda value: value == "auto" or value.isdecimal() and int(value) > 0, "auto, or a number from 1 on"),
        metavar="auto|N",
    )
    resume: bool = OUTPUT.setting(False, "Go on with the search in output_dir; keep finished trials.")


@dataclass
class Search:
    """A parsed search: the job that trials vary, and how they vary it."""

    job: Job
    settings: TuneSettings
    space: Space

    def to_config(self) -> dict[str, Any]:
        """Returns flat names and values: a JSON config that repeats the search."""
        own = {name: value for name, value in asdict(self.settings).items() if value is not None and name != "resume"}
        return own | self.job.to_config()


def parse_search(given: Given, about: str | None = None) -> Search:
    """Makes a search from the words of a command line or from keyword arguments, like `parse_job`.

    Raises:
        InputError: unknown names, values that cannot work, or an argument that cannot be searched.
    """
    parser = training_parser(about, TuneSettings)
    job, further = parse_with(given, parser)
    settings = TuneSettings(**further)
    check_values(TuneSettings, further)
    if job.resume:
        raise InputError("--resume_from_checkpoint: a search goes on by --resume, each trial from its own checkpoint")
    job = replace(job, resume="true" if settings.resume else None, resume_flag=RESUME_FLAG)
    if job.settings.async_eval:
        raise InputError("--async_eval: the scheduler needs each evaluation at once; leave it out in a search")
    if isinstance(job.num_workers, tuple):
        raise InputError(f"--num_workers {job.settings.num_workers}: the trials of a search have a fixed number each")
    space = parse_space(settings.tune or [], job, parser)
    if settings.tune_batch_size:
        sizes = ",".join(map(str, settings.tune_batch_size))
        space = {"global_batch_size": read_dimension("global_batch_size", sizes, job, parser), **space}
    rates = settings.tune_learning_rate
    if rates:
        if "learning_rate" in space:
            raise InputError("--tune learning_rate=...: --tune_learning_rate says the same; leave one out")
        text = f"{rates[0]}:{rates[1]}:log" if len(rates) == 2 else ",".join(map(str, rates))
        space = {"learning_rate": read_dimension("learning_rate", text, job, parser), **space}
    if "temperature" in space and job.training["metric_for_best_model"] == "eval_loss":
        raise InputError("--tune temperature=...: eval_loss depends on it; choose another --metric_for_best_model")
    if "train_share" in space:
        if not isinstance(space["train_share"], Choices):
            raise InputError("--tune train_share=LOW:HIGH: has to be a list, such as train_share=0.25,0.5,1")
        if settings.scheduler != "none":
            settings = replace(settings, scheduler="none")
            job.notes.append("note: --scheduler none: the learning curve needs every trial of train_share whole")
        job = replace(job, settings=replace(job.settings, train_share=1.0))  # all pairs are read
    finite = combinations(space)
    if settings.search_alg == "grid" and finite is None:
        ranges = [name for name, dimension in space.items() if not isinstance(dimension, Choices)]
        raise InputError(f"--search_alg grid: needs lists, and {', '.join(ranges)} is a range")
    return Search(job, settings, space)
