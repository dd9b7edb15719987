"""Makes one training run, from a parsed job to the files in output_dir.

1. Set up: check the job, connect to Ray, plan the workers, read and tokenize the files (`setup.py`).
2. Train on the workers (`driver.py`, `worker.py`).
3. Choose the model that the run leaves (`finish.py`), write the model, results and predictions, and make the
   lines of the summary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rqa_ray.cluster.probe import wait_for_storage
from rqa_ray.cluster.workers import find_spare, where_evaluated
from rqa_ray.corpus.bm25 import HYBRID_FILE
from rqa_ray.data.sources import check_sources
from rqa_ray.evaluation import hybrid_report
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.predictions import (
    PASSAGES_FILE,
    AskedQuestions,
    Documents,
    Ranked,
    write_predictions,
)
from rqa_ray.places import ALL_ARGS_FILE, REPORT_FILE, inside, shown, staged
from rqa_ray.reports.pages import write_report
from rqa_ray.reports.suspects_page import PAGE_FILE, SUSPECTS_FILE
from rqa_ray.reports.weaknesses import Weakness, against_bm25, weaknesses
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.training import checkpoints as stored
from rqa_ray.training import summary
from rqa_ray.training.batch_sizes import micro_batch_size
from rqa_ray.training.checkpoint_files import ADAPTER_FOLDER
from rqa_ray.training.driver import fit, stop_message
from rqa_ray.training.finish import Choice, EvalQuestions
from rqa_ray.training.finisher import Finisher, place_of
from rqa_ray.training.job import Job
from rqa_ray.training.loops import train_worker
from rqa_ray.training.model_card import BASE, BM25, CARD_FILE, model_card
from rqa_ray.training.output_folder import delete_files, push, with_local_output
from rqa_ray.training.result import TrainResult
from rqa_ray.training.run_record import RunRecord, open_run
from rqa_ray.training.run_report import page_of_run
from rqa_ray.training.run_suspects import write_run_suspects
from rqa_ray.training.setup import Setup, asked_of, serve_windows, set_up
from rqa_ray.training.summary import ModelState
from rqa_ray.training.trainer import TRAINER_STATE_FILE
from rqa_ray.training.uploads import StorageAway

# files and folders that not every finish writes; those of an earlier finish describe another model
PREDICTIONS = ("eval-predictions.jsonl", "test-predictions.jsonl", PASSAGES_FILE)
NOT_ALWAYS = (HYBRID_FILE, REPORT_FILE, SUSPECTS_FILE, PAGE_FILE, "test_results.json", *PREDICTIONS, ADAPTER_FOLDER)


def train(job: Job) -> TrainResult:
    """Runs a training job to its end.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written.
        Stopped: a signal ended the run, and its state is saved.
    """
    setup = set_up(with_local_output(job), ALL_ARGS_FILE)
    job, workers = setup.job, setup.workers
    micro_batch, lines = micro_batch_size(job, workers.num_workers, setup.num_rows, setup.has_negatives)
    if job.settings.homogeneous_batches:
        check_sources(setup.by_source.counts(job.share), micro_batch)
    print("\n".join(lines))
    spare = find_spare(workers) if job.settings.async_eval else None
    if job.settings.async_eval:
        print(where_evaluated(workers, spare))
    record = open_run(job)
    setup.write_bad_records()
    print(f"checkpoints in {shown(record.storage_path)}")
    windows = serve_windows(setup.stream, job, workers) if setup.stream else None
    mining = setup.read_mining_texts() if job.settings.mine_negatives else None
    own = {"windows": windows, "mining": mining, "spare": spare}
    spec = setup.worker_spec(micro_batch=micro_batch, may_leave=True, **own)
    while True:
        try:
            spec = replace(spec, resume_from=record.resume_from)
            outcome = fit(train_worker, job, workers, spec, record.storage_path, record.run_names[-1])
            if not outcome.has_left:
                break
            print(
                f"a node is taken away: state saved after step {outcome.result.step}; starting workers on other nodes"
            )
            record = open_run(replace(job, resume="true"))
        except StorageAway as error:
            print(f"warning: {error}; waiting until it answers")
            wait_for_storage(record.storage_path)
            record = open_run(replace(job, resume="true"))
    if outcome.stopped_by:
        stop_message(job, outcome.result.step, outcome.stopped_by)
    ran = Ran(
        whole=record.checkpoints(),
        place=place_of(record.storage_path, record.run_names[0]),
        metrics=outcome.result.metrics,
        evaluations=stored.list_evaluations(record.storage_path, record.run_names),
        starting=outcome.starting,
    )
    return finish(setup, job, record, setup.model, ran)


@dataclass(frozen=True)
class Ran:
    """What the training of a run, or of the winner of a search, has left for the finish."""

    whole: list[stored.StoredCheckpoint]  # by step
    place: str  # folder or URI of what the finish stores
    metrics: dict[str, Any]  # transformers' training metrics
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # made beside training, by step
    starting: float = 0.0  # how long the workers took to start (seconds)


@dataclass(frozen=True)
class Compared:
    """The chosen model, compared with the pretrained model and with BM25."""

    choice: Choice
    before: ModelState  # the pretrained model
    best: ModelState  # the chosen one
    splits: dict[str, AskedQuestions]
    documents: Documents

    @cached_property
    def with_base(self) -> dict[str, Comparison]:
        """The comparison with the pretrained model, by split."""
        both = self.before, self.best
        return {
            split: Comparison.of(asked, self.documents, *(of.evaluation.splits[split].positions for of in both))
            for split, asked in self.splits.items()
        }

    @cached_property
    def rivals(self) -> dict[str, dict[str, Comparison]]:
        """The comparisons with each rival, by split; BM25 is among them if it was measured."""
        bm25 = against_bm25(self.with_base, self.documents, self.best.evaluation)
        return {BASE: self.with_base} | ({BM25: bm25} if bm25 else {})

    @cached_property
    def weaknesses(self) -> list[Weakness]:
        """What the chosen model is worse at than a rival."""
        return weaknesses(self.rivals)

    def intervals(self, side: int) -> dict[str, tuple[float, float]]:
        """Returns the intervals by full name: of the pretrained model (side 0), or of the chosen one (side 1)."""
        of_all = ((split, of.intervals[side]) for split, of in self.with_base.items())
        return {f"{split}_{name}": ends for split, around in of_all for name, ends in around.items()}

    def write_predictions(self, folder: Path, top_k: int) -> None:
        """Writes what the chosen model has found."""
        found = self.best.evaluation.splits
        ranked = {
            split: Ranked(of.asked, found[split].scores, of.positions[1], of.values[1])
            for split, of in self.with_base.items()
        }
        write_predictions(folder, ranked, self.documents.document, top_k)


def finish(
    setup: Setup, job: Job, record: RunRecord, model: ModelSpec, ran: Ran, next_command: str | None = None
) -> TrainResult:
    """Chooses among the stored checkpoints of a run, and writes output_dir.

    `model` is the pretrained model. Files of an earlier finish that describe another model are deleted.
    """
    began = time.monotonic()
    splits, documents = asked_of(setup.blocks)
    asked = splits["eval"]
    questions = EvalQuestions(asked.gold_ids, documents.passage_ids, asked.clusters.labels)
    finisher = Finisher(setup, job, model, ran.whole, ran.place, questions, setup.fingerprints())
    ran = replace(ran, evaluations=[*ran.evaluations, *finisher.make_up_evaluations()])
    choice = finisher.choose()
    before = ModelState(0, finisher.before())
    best = ModelState(choice.candidate.step, choice.evaluation, finisher.learned_temperature(choice.candidate))
    found = Compared(choice, before, best, splits, documents)
    folder = Path(job.output_dir)
    with staged(folder) as staging:
        finisher.write_model(choice.candidate, staging)
        lines, about_report = _write_results(staging, setup, job, model, ran, found, began)
        if job.settings.lora_r and job.settings.save_adapter:
            lines.append(finisher.write_adapter(choice.candidate, staging / ADAPTER_FOLDER))
        written = {str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()}
        stale = {name for name in record.files if name.startswith(NOT_ALWAYS)} - written
        record.files = sorted(written | set(record.files))
        record.save(job.output_dir)
    delete_files(job, stale)
    push(job)
    return TrainResult(
        output_dir=job.location,
        best_step=best.step,
        chosen=str(choice.candidate),
        before=before.evaluation.metrics,
        metrics=best.evaluation.metrics,
        before_intervals=found.intervals(0),
        intervals=found.intervals(1),
        weaknesses=found.weaknesses,
        summary=summary.last_lines(job, lines, choice, about_report, next_command),
        files=[inside(job.location, name) for name in record.files if (folder / name).exists()],
        report=inside(job.location, REPORT_FILE) if REPORT_FILE in written else None,
    )


def _write_results(
    folder: Path, setup: Setup, job: Job, model: ModelSpec, ran: Ran, found: Compared, began: float
) -> tuple[list[str], str]:
    """Writes all that is known about the chosen model; returns lines about it, and the line about the report.

    `began` is the time at which the finish began.
    """
    choice, best, documents, newest = found.choice, found.best, found.documents, ran.whole[-1]
    dimensions = job.settings.matryoshka_dims or ()
    lines, intervals = summary.compare(found.with_base, found.before, best, dimensions)
    newest.download(TRAINER_STATE_FILE, folder / TRAINER_STATE_FILE)
    summary.add_evaluations(folder / TRAINER_STATE_FILE, ran.evaluations)
    sources = setup.by_source.counts(job.share)
    summary.write_files(folder, job, best, ran.metrics, intervals, choice, sources)
    why_not = hybrid_report.why_not(len(documents.passage_ids))
    not_compared = "" if BM25 in found.rivals else f"BM25 was not measured: {why_not}."
    of_card = found.before, best, choice, found.rivals, found.weaknesses, not_compared
    model_card(job, model, *of_card).save(folder / CARD_FILE)
    of_hybrid = documents.passage_ids, best.evaluation, folder, setup.texts.read_index
    hybrid = hybrid_report.report(found.splits, *of_hybrid)
    if job.settings.write_predictions:
        found.write_predictions(folder, job.settings.predictions_top_k)
    finishing = time.monotonic() - began
    spent = replace(newest.note.spent, reading=setup.seconds, starting=ran.starting, finishing=finishing)
    if job.settings.mine_negatives:
        lines += write_run_suspects(folder, job.location, newest, setup.train_files, setup.labels, documents)
    verdict = [summary.achieved(choice, found.with_base), *choice.describe(), hybrid]
    of_page = choice, verdict, found.with_base, documents, replace(newest.note, spent=spent)
    report = write_report(folder, job.location, lambda: page_of_run(folder, setup, job, *of_page).html())
    return [*lines, hybrid], report
