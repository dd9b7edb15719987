"""Writes the files that a run leaves in output_dir, all or none, and the last lines that the run prints.

This file does not import Ray: the driver passes plain tables and numbers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rqa_ray.credentials import masked
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.confidence import INTERVALS
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, LATENCY, name_at
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.loss_settings import LossSettings
from rqa_ray.places import ALL_ARGS_FILE, inside, shown, with_suffix, write_json, write_whole
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.texts import command
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.spec import TENSORBOARD_FOLDER

BAD_RECORDS_FILE = "bad_records.jsonl"


@dataclass
class ModelState:
    """The evaluation of the model at one step."""

    step: int
    evaluation: Evaluation
    temperature: float | None = None  # of the loss at this step, if the loss learned it


def write_bad_records(folder: Path, problems: list[str], counts: str) -> str:
    """Writes the first bad records that were left out, one line of JSON each; returns a line for the user."""
    lines = "".join(json.dumps({"problem": problem}) + "\n" for problem in problems)
    write_whole(folder / BAD_RECORDS_FILE, lines.encode())
    return f"warning: bad records, left out: {counts}; the first are listed in {folder / BAD_RECORDS_FILE}"


def write_files(
    staging: Path,
    job: Job,
    model: ModelSpec,
    before: ModelState,
    best: ModelState,
    train: dict[str, Any],
    intervals_of: dict[str, dict[str, tuple[float, float]]],
    choice: Choice,
) -> None:
    """Writes all_args.json, the results files with intervals by split and metric, and the model card."""
    write_json(staging / ALL_ARGS_FILE, job.to_config())
    candidates = [vars(score) | {"candidate": str(score.candidate)} for score in choice.scores]
    chosen = {"best_step": best.step, "chosen": str(choice.candidate), "candidates": candidates}
    write_json(staging / "train_results.json", train | chosen)
    for split, around in intervals_of.items():
        metrics = best.evaluation.metrics_of(split)
        named = {f"{split}_{name}": ends for name, ends in around.items()}
        write_json(staging / f"{split}_results.json", {"step": best.step, **metrics, INTERVALS: named})
    model_card(job, model, before, best, choice).save(staging / "README.md")


def add_evaluations(path: Path, evaluations: list[tuple[int, dict[str, float]]]) -> None:
    """Adds (step, metrics) of evaluations beside training to the history in `trainer_state.json`."""
    state = json.loads(path.read_text(encoding="utf-8"))
    there = {entry["step"] for entry in state["log_history"] if any(name.startswith("eval_") for name in entry)}
    state["log_history"] += [{"step": step, **metrics} for step, metrics in evaluations if step not in there]
    state["log_history"].sort(key=lambda entry: entry["step"])
    write_json(path, state)


def compare(
    compared: Mapping[str, Comparison], before: ModelState, best: ModelState, dimensions: Sequence[int] = ()
) -> tuple[list[str], dict[str, dict[str, tuple[float, float]]]]:
    """Returns lines that say what was gained, and if that is more than chance; also what cut embeddings have gained.

    Also the best model's intervals by split.
    """
    lines = []
    for split, comparison in compared.items():
        asked, (old, new) = comparison.asked, comparison.values
        lines.append(f"{split}, {len(asked.questions):,} questions{asked.clusters.note}:")
        for label, change in comparison.changes.items():
            name = LABELS[label]
            lines.append(f"  {label:8} {old[name].mean():.3f} -> {new[name].mean():.3f}, {change.describe()}")
        lines += [_gains_at(number, split, before, best) for number in dimensions]
    return lines, {split: comparison.intervals[1] for split, comparison in compared.items()}


def _gains_at(dimensions: int, split: str, before: ModelState, best: ModelState) -> str:
    """Returns the line about embeddings that are cut to some dimensions."""
    gains = []
    for label in HEADLINES:
        metrics = [state.evaluation.metrics.get(f"{split}_{name_at(label, dimensions)}") for state in (before, best)]
        # a run that goes on with other dimensions has not measured them before
        gains.append(f"{label} {' -> '.join('unknown' if value is None else f'{value:.3f}' for value in metrics)}")
    return f"  cut to {dimensions} dimensions: {', '.join(gains)}"


CARD = """---
{{ card_data }}
---
# {{ name }}

A retriever fine-tuned from `{{ base }}` by in-batch contrastive learning with rqa_ray on {{ data }}:
{{ encoder }}.{% for line in about_loss %}
{{ line }}{% endfor %}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({{ name | tojson }})
```
{% if has_prefixes %}
Use `model.encode_query` and `model.encode_document`, which add the prefixes.
{% endif %}{% if prompts %}
The model was trained with instructions, which are prompts of the model. To put one of them before your questions,
use `model.encode_query(questions, prompt_name={{ prompts[0][0] | tojson }})`.

| prompt | text |
|---|---|
{% for name, text in prompts %}| {{ name }} | {{ text | tojson }} |
{% endfor %}{% endif %}
Metrics on the full corpus, before training and of the saved model ({{ choice.candidate }}):

| metric | before | after |
|---|---|---|
{% for name, old, new in metrics %}| {{ name }} | {{ "%.4f" | format(old) }} | {{ "%.4f" | format(new) }} |
{% endfor %}
The saved model was chosen on the eval questions. {{ reason }}

| candidate | {{ chosen_by }} | nDCG@10 | why not |
|---|---|---|---|
{% for score in choice.scores %}| {{ score.candidate }} | {{ "%.4f" | format(score.value) }} \
| {{ "%.4f" | format(score.ndcg) }} | {{ score.against or score.unproven }} |
{% endfor %}
Trained with rqa_ray's `jobs/train.py`; `{{ all_args }}` has all arguments and repeats the run.
"""


def about_loss(settings: LossSettings, best: ModelState) -> list[str]:
    """Returns sentences about what is not usual in the loss by which a model was trained."""
    lines = []
    if settings.symmetric_loss:
        lines.append("The loss is symmetric: each gold passage is scored against all questions of the batch too.")
    if best.temperature:
        lines.append(f"The temperature of the loss was learned: {settings.temperature:g} -> {best.temperature:.4g}.")
    if settings.matryoshka_dims:
        dims = ", ".join(map(str, settings.matryoshka_dims))
        lines.append(f"Embeddings can be cut to these dimensions, by sentence-transformers' `truncate_dim`: {dims}.")
    return lines


def model_card(job: Job, model: ModelSpec, before: ModelState, best: ModelState, choice: Choice) -> ModelCard:
    """Writes README.md of the model folder; license and language come from the base model's own card."""
    base, settings = Path(model.folder) / "README.md", job.settings
    known = ModelCard.load(base, ignore_metadata_errors=True).data if base.is_file() else ModelCardData()
    name, old = Path(job.output_dir).name, before.evaluation.metrics
    metrics = [
        (metric, old[metric], value)
        for metric, value in best.evaluation.metrics.items()
        if not metric.endswith(LATENCY) and metric in old
    ]
    results = [
        EvalResult(
            "sentence-similarity", "custom", metric.split("_")[0], metric.split("/")[-1], value, metric_name=metric
        )
        for metric, _, value in metrics
    ]
    is_local = Path(settings.model_name_or_path or "").expanduser().exists()
    data = ModelCardData(
        base_model=known.base_model if is_local else settings.model_name_or_path,
        license=known.license,
        language=known.language,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "rqa_ray"],
        model_name=name,
        eval_results=results,
    )
    return ModelCard.from_template(
        data,
        template_str=CARD,
        name=name,
        base=settings.model_name_or_path,
        data=", ".join(f"`{Path(shown(file)).name}`" for file in settings.train_file or []) or "its demo data",
        encoder=f"{model.settings.describe()}{f'; {settings.describe_lora()}, merged' if settings.lora_r else ''}",
        about_loss=about_loss(settings, best) if best.step else [],
        has_prefixes=model.settings.has_prefixes,
        prompts=model.prompts,
        metrics=metrics,
        choice=choice,
        chosen_by=choice.metric.removeprefix("eval_"),
        reason=" ".join(f"{line[0].upper()}{line[1:]}." for line in choice.describe()),
        all_args=ALL_ARGS_FILE,
    )


def last_lines(job: Job, lines: list[str], choice: Choice, report: str, next_command: str | None = None) -> list[str]:
    """Returns the last lines of a run; if no next command is given, they suggest another learning rate.

    `report` is the line about report.html.
    """
    folder = job.location
    best = f"best {choice.candidate} by {choice.metric}; model and results in {shown(folder)}"
    last = [*choice.describe(), *lines, best, report, "next:"]
    if "tensorboard" in (job.training["report_to"] or ""):
        logs = job.settings.logging_dir or inside(folder, TENSORBOARD_FOLDER)
        last.append(f"  tensorboard --logdir {shlex.quote(masked(logs))}")
    arguments = inside(folder, ALL_ARGS_FILE)
    # a mixture with the pretrained weights takes back a part of what training has moved: the steps were too large
    gained = choice.candidate.step > 0 and choice.candidate.share == 1
    rate = job.training["learning_rate"] * (2 if gained else 0.5)
    words = [arguments, "--learning_rate", f"{rate:g}", "--output_dir", with_suffix(folder, "-2")]
    return [*last, f"  {next_command or command(*job.command[:1] or ['jobs/train.py'], *words)}"]
