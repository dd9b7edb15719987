"""Plans the trials of a search from its parsed command and the size of the data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rqa_ray.data.share import PairsInShare, Share
from rqa_ray.data.sources import PairsBySource, check_sources
from rqa_ray.errors import InputError
from rqa_ray.reports.trials import Choices, Range, Space
from rqa_ray.training.batch_sizes import check_negatives, check_teacher, micro_batch_size
from rqa_ray.training.job import Job
from rqa_ray.tuning.budget import Budget
from rqa_ray.tuning.options import Search
from rqa_ray.tuning.space import combinations

FEWEST_EVALUATIONS = 4  # evaluations of a trial, if a scheduler compares trials


@dataclass
class SearchPlan:
    """The trials of a search."""

    job: Job
    space: Space
    budget: Budget
    points: list[dict[str, Any]] | None  # all points of a space of lists; None if points are drawn
    total: int  # number of trials

    @classmethod
    def of(cls, search: Search, job: Job, num_rows: int, shared: PairsInShare | None = None) -> SearchPlan:
        """Makes the plan of a job whose global batch size is filled in."""
        space = search.space or default_space(job)
        settings = search.settings
        budget = Budget.of(job, num_rows, FEWEST_EVALUATIONS if settings.scheduler == "asha" else 1, shared)
        points = None if settings.search_alg == "optuna" else combinations(space)
        if points and settings.search_alg == "random" and settings.num_samples < len(points):
            points = random.Random(job.training["seed"]).sample(points, settings.num_samples)
        return cls(job, space, budget, points, len(points) if points else settings.num_samples)

    @property
    def mines(self) -> bool:
        """Whether trials mine hard negatives."""
        return self.job.settings.mine_negatives > 0 or "mine_negatives" in self.space

    @property
    def is_taught(self) -> bool:
        """Whether a teacher scores the hard negatives that trials mine."""
        return self.mines and bool(self.job.settings.teacher)

    def describe(self, search: Search, at_once: int) -> list[str]:
        """Returns lines for the user."""
        space = "; ".join(f"{name} {dimension}" for name, dimension in self.space.items())
        number = f"{self.budget.evaluations} time{'s' * (self.budget.evaluations > 1)}"
        return [
            f"search: {space}",
            f"{self.total} trials, {at_once} at a time, of about {self.budget.pairs:,} pairs, evaluated {number} "
            f"each; search_alg {search.settings.search_alg}, scheduler {search.settings.scheduler}",
        ]

    def describe_batches(self, num_workers: int, has_negatives: bool, has_scores: bool) -> list[str]:
        """Returns lines about the batch sizes.

        Raises:
            InputError: a batch size, or a number of hard negatives, cannot be trained with.
        """
        own = self.space.get("negatives_per_question")
        if own:
            check_negatives(int(own.high if isinstance(own, Range) else max(own.values)), has_negatives)
        weight = self.space.get("distill_weight")
        if weight:
            check_teacher(weight.high if isinstance(weight, Range) else max(weight.values), has_scores)
        sizes = self.space.get("global_batch_size") or Choices((self.job.settings.global_batch_size,))
        assert isinstance(sizes, Choices)
        parts = []
        for size in sizes.values:
            job = self.budget.job_of(self.job, {"global_batch_size": size})
            micro_batch_size(job, num_workers, self.budget.num_rows, has_negatives)
            batch, steps = self.budget.batch_of(job), job.training["max_steps"]
            parts.append(f"{size}: {steps} step{'s' * (steps > 1)}, {steps * batch:,} pairs")
        return [f"batch size {'; '.join(parts)}", *self._describe_shares(num_workers, has_negatives)]

    def check_sources(self, by_source: PairsBySource) -> None:
        """Raises InputError if a source cannot fill the largest batch of a trial alone."""
        sizes, shares = (self.space.get(name, Choices(())) for name in ("global_batch_size", "train_share"))
        assert isinstance(sizes, Choices) and isinstance(shares, Choices)
        size = max(sizes.values or [self.job.settings.global_batch_size or 0]) // self.job.accumulation_steps
        for share in shares.values or (self.job.share.share,):
            check_sources(by_source.counts(Share(share, self.job.training["seed"])), size)

    def _describe_shares(self, num_workers: int, has_negatives: bool) -> list[str]:
        shares, shared = self.space.get("train_share"), self.budget.shared
        if not isinstance(shares, Choices) or shared is None:
            return []
        if shared.source_keys is None:
            raise InputError("--tune train_share=...: streamed training files have one share; --data_mode resident")
        lines = []
        for value in sorted(shares.values):
            job = self.budget.job_of(self.job, {"train_share": value})
            lines.append(f"train_share {value:g}: {PairsInShare.of(job.share, shared.source_keys).describe()}")
            micro_batch_size(job, num_workers, self.budget.rows_of(job), has_negatives)
        return lines


def default_space(job: Job) -> Space:
    """Returns the space of a search without `--tune` flags: learning rate and batch size around the job's own."""
    rate, batch = job.training["learning_rate"], job.settings.global_batch_size or 2
    sizes = (batch // 2, batch, 2 * batch)
    return {
        "learning_rate": Range(rate / 10, rate * 10, is_log=True, is_whole=False),
        "global_batch_size": Choices(tuple(size for size in sizes if size > 1 and size % job.accumulation_steps == 0)),
    }
