"""What a run leaves in output_dir, and the summary that it prints: whole files or none, written beside and renamed.

Knows no Ray: the driver hands over plain tables and numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.arguments import Job
from rqa_ray.data.rows import column, distinct_documents, first_of_question, input_order
from rqa_ray.data.schema import Document
from rqa_ray.evaluation.metrics import paired_sign_test, recall_hits
from rqa_ray.retriever.saving import EncoderSettings

ALL_ARGS_FILE = "all_args.json"
RUN_FILE = "run.json"  # names of this folder's Ray runs, for resuming
CHECKPOINTS_FOLDER = "checkpoints"
TENSORBOARD_FOLDER = "tensorboard"
DEMO_FOLDER = "demo_data"
BAD_RECORDS_FILE = "bad_records.jsonl"
_HEADLINES = ("document_recall/recall4", "document_ndcg/ndcg10")


@dataclass
class ModelState:
    """What is known of the model at one step: metrics, and rankings by split."""

    step: int
    metrics: dict[str, float]
    rankings: dict[str, np.ndarray]  # {split}_scores and {split}_positions


class Corpus:
    """The documents that rankings point to, in the order of `rows.Corpus`."""

    def __init__(self, tables: list[pa.Table]) -> None:
        self._documents = pa.chunked_array([chunk for table in tables for chunk in table["document"].chunks])
        self._order = distinct_documents(tables)
        self.passage_ids = column(tables, "passage_id")[self._order]

    def __getitem__(self, position: int) -> dict[str, Any]:
        return json.loads(self._documents[int(self._order[position])].as_py())


class AskedQuestions:
    """Questions and gold documents of one split, in the order of `rows.Questions`."""

    def __init__(self, tables: list[pa.Table]) -> None:
        order = input_order(tables)
        first = first_of_question(tables, order)
        table = pa.concat_tables(
            [part.select(["question", "question_key", "gold_doc", "passage_id"]) for part in tables]
        )
        rows = table.take(pa.array(order)).to_pylist()
        self.questions = [rows[row]["question"] for row in first]
        by_key: dict[int, dict[int, str]] = {}
        for row in rows:
            by_key.setdefault(row["question_key"], {})[row["passage_id"]] = row["gold_doc"]
        self.golds = [by_key[rows[row]["question_key"]] for row in first]

    def gold_docs(self, question: int) -> list[dict[str, Any]]:
        return [full_document(json.loads(text)) for text in self.golds[question].values()]


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files and folders are moved into `folder` when the block ends well, else deleted."""
    staging = folder / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            target = folder / path.relative_to(staging)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes beside and renames."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The value of a JSON file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_bad_records(folder: Path, problems: list[str], counts: str) -> str:
    """Lists the first records that were left out, a line of JSON each; returns a line for the user."""
    temporary = folder / f".{BAD_RECORDS_FILE}.tmp"
    temporary.write_text("".join(json.dumps({"problem": problem}) + "\n" for problem in problems), encoding="utf-8")
    os.replace(temporary, folder / BAD_RECORDS_FILE)
    return f"warning: bad records, left out: {counts}; the first are listed in {folder / BAD_RECORDS_FILE}"


def write_results(
    staging: Path, job: Job, encoder: EncoderSettings, before: ModelState, best: ModelState, train: dict[str, Any]
) -> None:
    """all_args.json, the results files and the model card."""
    write_json(staging / ALL_ARGS_FILE, job.to_config())
    write_json(staging / "train_results.json", {**train, "best_step": best.step})
    for split in ("eval", "test"):
        metrics = {name: value for name, value in best.metrics.items() if name.startswith(f"{split}_")}
        if metrics:
            write_json(staging / f"{split}_results.json", {"step": best.step, **metrics})
    (staging / "README.md").write_text(model_card(job, encoder, before, best), encoding="utf-8")


def write_predictions(path: Path, asked: AskedQuestions, corpus: Corpus, state: ModelState, split: str) -> None:
    """One line a question: its gold documents, and the retrieved ones with scores, best first."""
    scores, positions = state.rankings[f"{split}_scores"], state.rankings[f"{split}_positions"]
    with path.open("w", encoding="utf-8") as file:
        for row, question in enumerate(asked.questions):
            retrieved = [
                {**corpus[position], "score": float(score)}
                for position, score in zip(positions[row], scores[row], strict=True)
            ]
            record = {"question": question, "gold_docs": asked.gold_docs(row), "retrieved_docs": retrieved}
            file.write(json.dumps(record) + "\n")


def full_document(record: dict[str, Any]) -> dict[str, Any]:
    """A document with its `fmt_content` spelled out."""
    return vars(Document(**record))


def compare(splits: dict[str, AskedQuestions], corpus: Corpus, before: ModelState, best: ModelState) -> list[str]:
    """Lines that say what was achieved: before, after, and whether it is more than chance."""
    lines = []
    for split, asked in splits.items():
        gold_ids = [list(golds) for golds in asked.golds]
        hits = [
            recall_hits(corpus.passage_ids[state.rankings[f"{split}_positions"]], gold_ids, 4)
            for state in (before, best)
        ]
        changes = []
        for name in _HEADLINES:
            old, new = (state.metrics[f"{split}_retr/{name}"] for state in (before, best))
            changes.append(f"{name.split('/')[-1]} {old:.3f} -> {new:.3f} ({100 * (new - old):+.1f} points)")
        p_value = paired_sign_test(*hits)
        lines.append(
            f"{split:5s}{len(asked.questions):>6,} questions: {', '.join(changes)}, sign test p = {p_value:.2g}"
        )
    return lines


def model_card(job: Job, encoder: EncoderSettings, before: ModelState, best: ModelState) -> str:
    """README.md of the model folder."""
    names = [name for name in best.metrics if "latency" not in name]
    rows = "\n".join(f"| {name} | {before.metrics[name]:.4f} | {best.metrics[name]:.4f} |" for name in names)
    prompts = ""
    if encoder.has_prefixes:
        prompts = "\nUse `model.encode_query` and `model.encode_document`, which add the prefixes.\n"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, rqa_ray]
---
# {Path(job.output_dir).name}

A retriever fine-tuned from `{job.settings.model_name_or_path}` by in-batch contrastive learning with rqa_ray:
{encoder.describe()}.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{Path(job.output_dir).name}")
```
{prompts}
Metrics on the full corpus, before training and of the saved model (step {best.step}):

| metric | before | after |
|---|---|---|
{rows}

Trained with rqa_ray's `jobs/train.py`; `{ALL_ARGS_FILE}` has all arguments and repeats the run.
"""


def print_summary(job: Job, lines: list[str], best: ModelState) -> None:
    """The last lines of a run."""
    folder = job.output_dir
    improved = best.step > 0
    print()
    if not improved:
        print("no evaluated step was better than the pretrained model: its weights are kept")
    print("\n".join(lines))
    print(f"best step {best.step} by {job.training['metric_for_best_model']}; model and results in {folder}")
    arguments = os.path.join(folder, ALL_ARGS_FILE)
    print("next:")
    if "tensorboard" in (job.training["report_to"] or ""):
        print(f"  tensorboard --logdir {job.settings.logging_dir or os.path.join(folder, TENSORBOARD_FOLDER)}")
    rate = 2 * job.training["learning_rate"] if improved else job.training["learning_rate"] / 2
    print(f"  python {sys.argv[0]} {arguments} --learning_rate {rate:g} --output_dir {folder.rstrip('/')}-2")
