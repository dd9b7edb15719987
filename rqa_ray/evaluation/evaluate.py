"""Evaluates a model: embeds the corpus, ranks it for each question, computes metrics; a killed run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rqa_ray.cluster.connection import connect
from rqa_ray.cluster.workers import Workers, plan_workers
from rqa_ray.corpus.bm25 import Bm25, Hybrid, Weight
from rqa_ray.corpus.encode import plan_corpus
from rqa_ray.corpus.encoded import Encoded, embedding_folder
from rqa_ray.corpus.model import Model, find_model
from rqa_ray.corpus.plan import CorpusPlan
from rqa_ray.corpus.shards import QUESTIONS_FOLDER, EmbeddingFolder
from rqa_ray.corpus_settings import RETRIEVERS, EvaluateSettings
from rqa_ray.data.formats import parse_qa_record
from rqa_ray.data.readers import read_inputs
from rqa_ray.data.records import find_inputs, find_labels
from rqa_ray.data.rows import Questions
from rqa_ray.errors import InputError, need_extra
from rqa_ray.evaluation.confidence import INTERVALS, intervals, paired_difference
from rqa_ray.evaluation.evaluator import TOP_K
from rqa_ray.evaluation.hybrid_weight import choose_weight
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, LATENCY, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions, write_predictions
from rqa_ray.places import (
    ALL_ARGS_FILE,
    check_local_folder,
    read_json,
    refuse_among_inputs,
    refuse_files_of_others,
    staged,
    write_json,
)
from rqa_ray.texts import html_table

SCORE_FILE = "score.json"
PREDICTIONS_FILE = "test-predictions.jsonl"
SPLIT = "test"
INPUTS = {"corpus": "document_path", "test": "eval_data_path", "weight": "weight_data_path"}


@dataclass
class EvaluateResult:
    """The result of `evaluate`: metrics by retriever, first the one that was asked for.

    The files are in output_dir.
    """

    output_dir: str
    num_questions: int
    metrics: dict[str, dict[str, Any]]  # metrics by full name, with intervals
    differences: list[str]  # lines about what the other retrievers gain over the first
    note: str = ""  # about the clusters of the questions

    def describe(self) -> str:
        """Returns lines for a person."""
        written = f"written: {Path(self.output_dir) / SCORE_FILE}, {PREDICTIONS_FILE}, {ALL_ARGS_FILE}"
        note = [f"{self.num_questions:,} questions{self.note}"] if self.note else []
        return "\n".join(["", *table(self.metrics, self.num_questions), *self.differences, *note, written])

    def _repr_html_(self) -> str:
        names = {name: f"{SPLIT}_{metric}" for name, metric in LABELS.items()}
        rows = [[name, *(scores[metric] for metric in names.values())] for name, scores in self.metrics.items()]
        return html_table([f"{self.num_questions:,} questions", *names], rows) + f"<p>{self.output_dir}</p>"


@dataclass
class Result:
    """The result of one retriever."""

    values: dict[str, np.ndarray]  # (Q,) values by metric, from `question_metrics`
    ranking: tuple[np.ndarray, np.ndarray] | None = None  # scores and positions (Q, K)
    latency: float | None = None  # seconds a question
    weight: float | None = None  # weight of the embeddings in a hybrid

    def metrics(self, clusters: np.ndarray) -> dict[str, Any]:
        """Metrics by full name, with intervals."""
        named = {f"{SPLIT}_{name}": float(values.mean()) for name, values in self.values.items()}
        named |= {} if self.latency is None else {f"{SPLIT}_{LATENCY}": self.latency}
        around = {f"{SPLIT}_{name}": ends for name, ends in intervals(self.values, clusters).items()}
        return {**named, **({} if self.weight is None else {"weight": self.weight}), INTERVALS: around}


def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Embeds a corpus, ranks it for each question with each retriever, and writes the metrics to output_dir.

    Raises:
        InputError: the user's input is wrong; nothing was written.
    """
    check_local_folder(settings.output_dir)
    if settings.compare == []:
        settings = replace(settings, compare=[*RETRIEVERS])
    output = Path(settings.output_dir)
    config = {
        name: value
        for name, value in asdict(settings).items()
        if value not in (None, False) and name != "overwrite_output_dir"
    }
    given = {name: (flag, getattr(settings, flag)) for name, flag in INPUTS.items()}
    outputs = {flag: getattr(settings, flag) for flag in ("output_dir", "embeddings_path")}
    inputs = find_inputs(given, skip_bad=False, outputs=outputs)
    labels = find_labels(settings.accepted_labels)
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
    lost = {gold for golds in test.gold_ids for gold in golds} - set(plan.passage_ids.tolist())
    print(f"data: {len(test.questions):,} questions; {plan.describe()}")
    number = len(test.instructions) - test.instructions.count(None)
    if number:
        print(f"instructions: {number:,} of the questions have one, in place of the query prefix")
    for line in labels.describe(key for part in asked.values() for key in part.keys):
        print(line)
    if lost:
        print(f"warning: gold passages that are missing from the corpus, so cannot be found: {len(lost):,}")
    others = {name: read_predictions(name, test) for name in wanted if name not in RETRIEVERS}
    retrievers = Retrievers(settings, model, workers, inputs, plan, asked)
    if {"dense", "hybrid"} & set(names):
        retrievers.embed({name: Questions.from_tables(part.tables()) for name, part in blocks.items()})
    results = {name: retrievers.result(name) for name in names} | others
    clusters = test.clusters.labels
    scores = {name: result.metrics(clusters) for name, result in results.items()}
    with staged(output) as staging:
        head = {
            "retriever": settings.retriever_type,
            "questions": len(test.questions),
            "passages": len(plan.passage_ids),
        }
        compared = {"compare": {name: scores[name] for name in wanted[1:]}} if wanted[1:] else {}
        write_json(staging / SCORE_FILE, {**head, **scores[settings.retriever_type], **compared})
        write_json(staging / ALL_ARGS_FILE, config)
        ranking = results[settings.retriever_type].ranking
        assert ranking is not None
        write_predictions(staging / PREDICTIONS_FILE, test, retrievers.documents(ranking[1]), *ranking)
    lines = differences(results, clusters)
    return EvaluateResult(settings.output_dir, len(test.questions), scores, lines, test.clusters.note)


def check_output(output: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Raises InputError if the folder has results of another evaluation, or of another program."""
    if overwrite:
        return
    earlier = read_json(output / ALL_ARGS_FILE)
    if earlier is None:
        refuse_files_of_others(output, [SCORE_FILE, PREDICTIONS_FILE])
    elif earlier != config:
        raise InputError(
            f"--output_dir {output}: has results of other arguments; choose another, or --overwrite_output_dir"
        )


class Retrievers:
    """Ranks the corpus for the questions with each retriever; makes once what several retrievers need."""

    def __init__(
        self,
        settings: EvaluateSettings,
        model: Model,
        workers: Workers,
        inputs: dict[str, list[str]],
        plan: CorpusPlan,
        asked: Mapping[str, AskedQuestions],
    ) -> None:
        self.settings, self.inputs, self.plan, self.asked = settings, inputs, plan, asked
        self.folder = embedding_folder(settings)
        texts = EmbeddingFolder(str(Path(settings.output_dir) / QUESTIONS_FOLDER))
        self.encoded = Encoded(model, self.folder, texts, workers)
        self.k = min(TOP_K, len(plan.passage_ids))
        self._bm25: Bm25 | None = None

    def embed(self, questions: dict[str, Questions]) -> None:
        """Encodes the questions and passages that are not encoded yet."""
        tokens = {name: part.tokens for name, part in questions.items()}
        overwrite = self.settings.overwrite_output_dir and not self.settings.embeddings_path
        self.encoded.encode(self.inputs["corpus"], self.plan, tokens, self.settings.bf16, overwrite)

    def result(self, name: str) -> Result:
        """Returns what a retriever finds for the test questions."""
        test, latency, weight = self.asked["test"], None, None
        if name == "dense":
            shards = self.encoded.shards["test"]
            scores, positions, seconds = self.encoded.search(shards, self.k)
            latency = (seconds + self.encoded.texts.logged_seconds(shards)) / len(test.questions)
        elif name == "bm25":
            scores, positions = self.bm25().rank(test.questions, self.k)
        else:
            passages = [block.embeddings for block in self.folder.blocks([shard.name for shard in self.folder.shards])]
            hybrid = Hybrid(self.bm25(), torch.cat(passages))
            chosen = self._weight(hybrid)
            print(chosen.describe())
            weight = chosen.value
            embeddings = self.encoded.embeddings("test")
            scores, positions = hybrid.rank(test.questions, embeddings, [weight], self.k)[weight]
        values = question_metrics(self.plan.passage_ids[positions], test.gold_ids)
        return Result(values, (scores, positions), latency, weight)

    def _weight(self, hybrid: Hybrid) -> Weight:
        """Returns the weight that the user gives, or lets choose, or that the model has; else one half."""
        given, other = self.settings.hybrid_weight, self.asked.get("weight")
        if given is None and other:
            embeddings = self.encoded.embeddings("weight")
            weight = choose_weight(hybrid, other.questions, embeddings, other.gold_ids, self.plan.passage_ids)
            return Weight(weight, "chosen on --weight_data_path")
        known = Weight.of(given, self.encoded.model.spec.folder)
        return known or Weight(0.5, "as nothing chose them; --weight_data_path would choose")

    def bm25(self) -> Bm25:
        self._bm25 = self._bm25 or Bm25([document.fmt_content for document in self.plan.documents()])
        return self._bm25

    def documents(self, positions: np.ndarray) -> Callable[[int], dict[str, Any]]:
        """Returns the documents at some positions."""
        if self.encoded.shards:
            return self.folder.documents(positions).__getitem__
        wanted = set(positions.ravel().tolist())
        every = enumerate(self.plan.documents())
        return {place: document.to_dict() for place, document in every if place in wanted}.__getitem__


def read_predictions(location: str, asked: AskedQuestions) -> Result:
    """Reads the result of an earlier run from the predictions file in its folder.

    Raises:
        InputError: there is no such file, or it has other questions.
    """
    path = Path(location) / PREDICTIONS_FILE
    questions, retrieved = [], []
    try:
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line)
            questions.append(record["question"])
            found = parse_qa_record({"question": "", "gold_docs": record["retrieved_docs"]}).gold_docs
            retrieved.append([document.passage_id for document in found])
        ranked = np.array(retrieved)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--compare {location}: {path} was not written by jobs/evaluate.py ({error!r:.80})") from None
    if questions != asked.questions:
        raise InputError(f"--compare {location}: its predictions are of other questions than --eval_data_path")
    return Result(question_metrics(ranked, asked.gold_ids))


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


def differences(results: Mapping[str, Result], clusters: np.ndarray) -> list[str]:
    """Returns lines that say what the others gain over the first retriever, and whether this is more than chance."""
    (first, base), *others = results.items()
    lines = []
    for name, result in others:
        for label in HEADLINES:
            change = paired_difference(base.values[LABELS[label]], result.values[LABELS[label]], clusters)
            lines.append(f"{name} against {first}, {label}: {change.describe()}")
    return lines
