"""The typed result of a training run, as a program, a person or a notebook gets it."""

from __future__ import annotations

from dataclasses import dataclass

from rqa_ray.evaluation.metrics import LABELS
from rqa_ray.job_output import JobResult
from rqa_ray.places import shown
from rqa_ray.reports.weaknesses import Weakness
from rqa_ray.texts import html_table, short

SPLITS = ("eval", "test")


@dataclass
class TrainResult(JobResult):
    """The result of a training run: its metrics, and the place of its model.

    Metrics and their 95% intervals go by full name, such as eval_retr/document_recall/recall4.
    """

    output_dir: str  # folder or URI of the best model, the results and the predictions
    best_step: int  # the last step of the chosen model; 0 if it is the pretrained one
    chosen: str  # such as "step 50", or the mixture of tuned and pretrained weights
    before: dict[str, float]  # metrics of the pretrained model
    metrics: dict[str, float]  # metrics of the model in output_dir
    before_intervals: dict[str, tuple[float, float]]
    intervals: dict[str, tuple[float, float]]
    weaknesses: list[Weakness]  # where the model is worse than the pretrained model or BM25
    summary: list[str]  # lines for a person

    def describe(self) -> str:
        """Returns lines for a person."""
        return "\n".join(["", *self.summary])

    def _repr_html_(self) -> str:
        names = {f"{split}_{name}": f"{split} {label}" for split in SPLITS for label, name in LABELS.items()}
        rows = [
            [label, self.before[name], self.metrics[name], " to ".join(map(short, self.intervals[name]))]
            for name, label in names.items()
            if name in self.intervals
        ]
        return html_table(["", "before", f"after, {self.chosen}", "95% interval"], rows, shown(self.output_dir))
