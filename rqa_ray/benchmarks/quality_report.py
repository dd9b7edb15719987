"""Keeps the figures of `jobs/benchmark.py quality` in a JSON file, and writes them as tables with paired tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rqa_ray.benchmarks.quality_data import Values
from rqa_ray.errors import InputError
from rqa_ray.evaluation.confidence import Difference, paired_difference, pooled_difference
from rqa_ray.evaluation.metrics import HEADLINES
from rqa_ray.places import write_json

METRICS = HEADLINES[::-1]  # nDCG@10, which the tests compare, first


@dataclass
class QualityReport:
    """The values of each question, by data set, contender and seed; written after each addition."""

    path: Path
    settings: dict[str, Any]
    data: dict[str, Any]  # by name: clusters by split; values by contender and seed, by split and metric

    @classmethod
    def open(cls, path: str, settings: dict[str, Any]) -> QualityReport:
        """Reads the file if it exists.

        Raises:
            InputError: the file is no such report, or was measured with other settings.
        """
        if not Path(path).exists():
            return cls(Path(path), settings, {})
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            report = cls(Path(path), found["settings"], found["data"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"--output {path}: is no report of this benchmark; name another file") from None
        differing = [name for name, value in settings.items() if report.settings.get(name) != value]
        if differing:
            raise InputError(f"--output {path}: was measured with another --{differing[0]}; name another file")
        return report

    def has_data(self, name: str) -> bool:
        return name in self.data

    def has(self, name: str, recipe: str, seed: int) -> bool:
        return self.has_data(name) and str(seed) in self.data[name]["values"].get(recipe, {})

    def check_data(self, name: str, digest: str) -> None:
        """Raises InputError if the figures of a data set are those of other files; `digest` is that of the files."""
        if self.has_data(name) and self.data[name].get("digest") != digest:
            raise InputError(f"--output {self.path}: was measured with other files of {name}; name another file")

    def add_data(
        self, name: str, digest: str, clusters: Mapping[str, np.ndarray], untrained: Mapping[str, Values]
    ) -> None:
        """Adds a data set with its contenders that are not trained."""
        of_data = self.data.setdefault(name, {"digest": digest, "values": {}})
        of_data["clusters"] = {split: of.tolist() for split, of in clusters.items()}
        for contender, values in untrained.items():
            of_data["values"][contender] = {"0": _plain(values)}
        self._write()

    def add(self, name: str, seed: int, found: Mapping[str, Values]) -> None:
        """Adds the values of contenders that one run has made."""
        for contender, values in found.items():
            self.data[name]["values"].setdefault(contender, {})[str(seed)] = _plain(values)
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"settings": self.settings, "data": self.data})

    def mean(self, name: str, contender: str, split: str, metric: str) -> np.ndarray | None:
        """Returns (Q,) values, each a mean over the seeds; None if there are none."""
        runs = self.data[name]["values"].get(contender)
        return np.mean([run[split][metric] for run in runs.values()], axis=0) if runs else None

    def difference(self, name: str, one: str, other: str, metric: str) -> Difference | None:
        """Compares two contenders on the test questions of a data set."""
        part = self._part(name, one, other, metric)
        return paired_difference(*part) if part else None

    def _part(self, name: str, one: str, other: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        before, after = (self.mean(name, contender, "test", metric) for contender in (one, other))
        return None if before is None or after is None else (before, after, self._clusters(name))

    def _clusters(self, name: str) -> np.ndarray:
        return np.array(self.data[name]["clusters"]["test"])

    def tables(self, reference: str) -> str:
        """Returns Markdown: a table for each data set, and one of all sets together."""
        parts = [self._table(name, reference) for name in self.data]
        return "\n\n".join([*parts, self._pooled(reference)])

    def _table(self, name: str, reference: str) -> str:
        columns = [(split, metric) for split in ("eval", "test") for metric in METRICS]
        named = [f"{metric}, {split}" for split, metric in columns]
        lines = [_row(name, "seeds", *named, f"{METRICS[0]}, test, against {reference}"), _rule(7)]
        for contender, runs in self.data[name]["values"].items():
            means = [
                self.mean(name, contender, split, metric) for split in ("eval", "test") for metric in HEADLINES[::-1]
            ]
            gain = self.difference(name, reference, contender, METRICS[0]) if contender != reference else None
            numbers = [f"{values.mean():.4f}" for values in means if values is not None]
            lines.append(_row(contender, len(runs), *numbers, gain.describe() if gain else ""))
        return "\n".join(lines)

    def _pooled(self, reference: str) -> str:
        lines = [_row(f"all sets alike, test, against {reference}", *METRICS), _rule(3)]
        contenders = dict.fromkeys(each for of_data in self.data.values() for each in of_data["values"])
        for contender in contenders:
            if contender != reference:
                gains = [self._pooled_gain(reference, contender, metric) for metric in METRICS]
                lines.append(_row(contender, *gains))
        return "\n".join(lines)

    def _pooled_gain(self, reference: str, contender: str, metric: str) -> str:
        parts = [self._part(name, reference, contender, metric) for name in self.data]
        whole = [part for part in parts if part is not None]
        return pooled_difference(whole).describe() if len(whole) == len(parts) else "not measured on all sets"


def _plain(values: Values) -> dict[str, dict[str, list[float]]]:
    return {
        split: {metric: np.round(row, 5).tolist() for metric, row in of_split.items()}
        for split, of_split in values.items()
    }


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rule(number: int) -> str:
    return "|" + "---|" * number
