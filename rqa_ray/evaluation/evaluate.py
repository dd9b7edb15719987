"""Evaluates a model: embeds the corpus, ranks it for each question, computes metrics; a killed run can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rqa_ray.cluster.connection import connect
from rqa_ray.cluster.workers import plan_workers
from rqa_ray.corpus.encode import plan_corpus
from rqa_ray.corpus.encoded import embedding_folder
from rqa_ray.corpus.model import Model, find_model
from rqa_ray.corpus.plan import CorpusPlan
from rqa_ray.corpus_settings import RETRIEVERS, EvaluateSettings
from rqa_ray.credentials import masked_values
from rqa_ray.data.distinct import places_of
from rqa_ray.data.readers import read_inputs
from rqa_ray.data.records import find_inputs, find_labels
from rqa_ray.data.rows import Questions
from rqa_ray.errors import InputError, need_extra
from rqa_ray.evaluation.confidence import INTERVALS
from rqa_ray.evaluation.evaluated import SPLIT, Evaluated, Result, WriteReport, of_cut
from rqa_ray.evaluation.metrics import ACCURACY_CUTOFF, LABELS
from rqa_ray.evaluation.predictions import (
    PASSAGES_FILE,
    AskedQuestions,
    Ranked,
    predictions_file,
    read_values,
    write_predictions,
)
from rqa_ray.evaluation.retrievers import Retrievers
from rqa_ray.job_output import JobResult
from rqa_ray.places import (
    ALL_ARGS_FILE,
    REPORT_FILE,
    check_local_folder,
    read_json,
    refuse_among_inputs,
    refuse_files_of_others,
    shown,
    staged,
    write_json,
)
from rqa_ray.retriever.matryoshka import check_dimensions, trained_dimensions
from rqa_ray.texts import html_table

SCORE_FILE = "score.json"
PREDICTIONS_FILE = predictions_file(SPLIT)
FILES = (SCORE_FILE, PREDICTIONS_FILE, PASSAGES_FILE, ALL_ARGS_FILE)
NO_CHANGE = ("overwrite_output_dir", "json")  # settings that change no result
INPUTS = {"corpus": "document_path", "test": "eval_data_path", "weight": "weight_data_path"}


@dataclass
class EvaluateResult(JobResult):
    """The result of `evaluate`: metrics by retriever, first the one that was asked for."""

    output_dir: str
    num_questions: int
    metrics: dict[str, dict[str, Any]]  # metrics by full name, with intervals
    differences: list[str]  # lines about what the other retrievers gain over the first
    note: str = ""  # about the clusters of the questions
    about_report: str = ""  # a line that says where report.html is, or why there is none

    def describe(self) -> str:
        """Returns lines for a person."""
        written = f"written: {Path(self.output_dir) / ', '.join(FILES)}"
        note = [f"{self.num_questions:,} questions{self.note}"] if self.note else []
        lines = [*table(self.metrics, self.num_questions), *of_cut(self.metrics), *self.differences]
        return "\n".join(["", *lines, *note, written, *([self.about_report] if self.about_report else [])])

    def _repr_html_(self) -> str:
        names = {name: f"{SPLIT}_{metric}" for name, metric in LABELS.items()}
        rows = [[name, *(scores[metric] for metric in names.values())] for name, scores in self.metrics.items()]
        return html_table([f"{self.num_questions:,} questions", *names], rows, self.output_dir)


def evaluate(settings: EvaluateSettings, write_report: WriteReport | None = None) -> EvaluateResult:
    """Embeds a corpus, ranks it for each question with each retriever, and writes the metrics to output_dir.

    `write_report` writes the page about the evaluation (`reports/evaluation_page.py`).

    Raises:
        InputError: the user's input is wrong; nothing was written.
    """
    check_local_folder(settings.output_dir)
    if settings.compare == []:
        settings = replace(settings, compare=[*RETRIEVERS])
    output = Path(settings.output_dir)
    config = {
        name: value for name, value in asdict(settings).items() if value not in (None, False) and name not in NO_CHANGE
    }
    given = {name: (flag, getattr(settings, flag)) for name, flag in INPUTS.items()}
    outputs = {flag: getattr(settings, flag) for flag in ("output_dir", "embeddings_path")}
    inputs = find_inputs(given, skip_bad=False, outputs=outputs)
    labels = find_labels(settings.accepted_labels, inputs)
    model = find_model(settings)
    check_output(output, config, settings.overwrite_output_dir)
    shared = set(inputs["test"]) & set(inputs.get("weight", []))
    if shared:
        raise InputError(
            f"--weight_data_path {min(shared)}: --eval_data_path names this file too; pass other questions"
        )
    if settings.hybrid_weight is not None and settings.weight_data_path:
        raise InputError("--weight_data_path: would choose the weight that --hybrid_weight gives; leave one out")
    wanted = list(dict.fromkeys([settings.retriever_type, *(settings.compare or [])]))
    names = [name for name in wanted if name in RETRIEVERS]
    if settings.hybrid_weight is not None and "hybrid" not in names:
        raise InputError(f"--hybrid_weight {settings.hybrid_weight:g}: no effect without --retriever_type hybrid")
    for name in wanted:
        if name not in RETRIEVERS and not (Path(name) / PREDICTIONS_FILE).is_file():
            what = f"neither {', '.join(RETRIEVERS)} nor a folder with {PREDICTIONS_FILE}"
            raise InputError(f"--compare {name}: {what}")
        if name not in RETRIEVERS:
            refuse_among_inputs("output_dir", settings.output_dir, [], [str(Path(name) / PREDICTIONS_FILE)])
    if settings.matryoshka_dims and "dense" not in names:
        raise InputError(f"--matryoshka_dims {settings.matryoshka_dims[0]}: no effect without --retriever_type dense")
    check_dimensions(model.spec, settings.matryoshka_dims or ())
    if {"dense", "hybrid"} & set(names):
        embedding_folder(settings).check_own()
    if {"bm25", "hybrid"} & set(names):
        need_extra("bm25 and hybrid", "bm25", "bm25s")
    cluster, workers = connect(), plan_workers(settings.num_workers, settings.cpus_per_worker, settings.use_cpu)
    print(f"Ray: {cluster}; {workers.describe()}\n{model.describe()}")
    plan = plan_corpus(inputs["corpus"])
    blocks = read_inputs(
        {name: inputs[name] for name in ("test", "weight") if name in inputs}, model.spec, labels=labels
    )
    asked = {name: AskedQuestions(part.tables()) for name, part in blocks.items()}
    test = asked["test"]
    num_lost = int((places_of(np.unique(test.gold_ids.ids), plan.passage_ids) < 0).sum())
    print(f"data: {len(test.questions):,} questions; {plan.describe()}")
    number = len(test.instructions) - test.instructions.count(None)
    if number:
        print(f"instructions: {number:,} of the questions have one, in place of the query prefix")
    for line in labels.describe(key for part in asked.values() for key in part.keys):
        print(line)
    if num_lost:
        print(f"warning: gold passages that are missing from the corpus, so cannot be found: {num_lost:,}")
    others = {name: Result(read_values(Path(name), SPLIT, test)) for name in wanted if name not in RETRIEVERS}
    dimensions = settings.matryoshka_dims or trained_dimensions(model.spec.folder)
    retrievers = Retrievers(settings, model, workers, inputs, plan, asked, dimensions)
    if {"dense", "hybrid"} & set(names):
        retrievers.embed({name: Questions.from_tables(part.tables()) for name, part in blocks.items()})
    results = {name: retrievers.result(name) for name in names} | others
    asked_for = results[settings.retriever_type]
    assert asked_for.ranking is not None
    # the report shows the first passages, also where the predictions have fewer
    needed = asked_for.ranking[1][:, : max(settings.predictions_top_k, ACCURACY_CUTOFF)]
    documents = retrievers.documents(needed)
    facts = _facts(settings, model, plan, results, num_lost)
    found = Evaluated(test, plan.passage_ids, documents, results, facts)
    scores = found.scores
    about_report = ""
    with staged(output) as staging:
        head = {
            "retriever": settings.retriever_type,
            "questions": len(test.questions),
            "passages": len(plan.passage_ids),
        }
        compared = {"compare": {name: scores[name] for name in wanted[1:]}} if wanted[1:] else {}
        write_json(staging / SCORE_FILE, {**head, **scores[settings.retriever_type], **compared})
        write_json(staging / ALL_ARGS_FILE, config)
        ranked = Ranked(test, *asked_for.ranking, asked_for.values)
        write_predictions(staging, {SPLIT: ranked}, documents, settings.predictions_top_k)
        if write_report:
            about_report = write_report(staging, settings.output_dir, found)
        has_report = (staging / REPORT_FILE).exists()
        if not has_report:
            (output / REPORT_FILE).unlink(missing_ok=True)  # it would be about an earlier evaluation
    lines = found.describe()
    report = str(output / REPORT_FILE) if has_report else None
    return EvaluateResult(
        settings.output_dir,
        len(test.questions),
        scores,
        lines,
        test.clusters.note,
        about_report,
        files=[*(str(output / name) for name in FILES), *([report] if report else [])],
        report=report,
    )


def check_output(output: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Raises InputError if the folder has results of another evaluation, or of another program."""
    if overwrite:
        return
    earlier = read_json(output / ALL_ARGS_FILE)
    if earlier is None:
        refuse_files_of_others(output, [SCORE_FILE, PREDICTIONS_FILE, PASSAGES_FILE])
    elif earlier != masked_values(config):
        raise InputError(
            f"--output_dir {output}: has results of other arguments; choose another, or --overwrite_output_dir"
        )


def table(scores: Mapping[str, dict[str, Any]], num_questions: int) -> list[str]:
    """Returns the lines of a table: one row for each metric, one column for each retriever, with 95% intervals."""
    columns = []
    for name, metrics in scores.items():
        cells = [name]
        for metric in LABELS.values():
            low, high = metrics[INTERVALS][f"{SPLIT}_{metric}"]
            cells.append(f"{metrics[f'{SPLIT}_{metric}']:.3f}  {low:.3f} to {high:.3f}")
        columns.append(cells)
    rows = zip([f"{num_questions:,} questions", *LABELS], *columns, strict=True)
    width = max(len(cell) for cells in columns for cell in cells) + 3
    return [f"{label:16}" + "".join(cell.ljust(width) for cell in cells).rstrip() for label, *cells in rows]


def _facts(
    settings: EvaluateSettings, model: Model, plan: CorpusPlan, results: Mapping[str, Result], num_lost: int
) -> dict[str, str]:
    """Returns what the report says about the evaluation itself."""
    facts = {
        "retriever": settings.retriever_type,
        "model": model.describe().removeprefix("model: "),
        "questions": ", ".join(map(shown, settings.eval_data_path or [])),
        "passages": f"{plan.describe()}, of {', '.join(map(shown, settings.document_path or []))}",
        "golds that are missing from the corpus": f"{num_lost:,}",
    }
    for name, result in results.items():
        if result.weight is not None:
            facts[f"weight of the model in {name}"] = f"{result.weight:g}"
        if result.latency is not None:
            facts[f"time of a question, {name}"] = f"{1000 * result.latency:.1f} ms"
    return facts
