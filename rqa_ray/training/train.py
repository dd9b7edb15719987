"""Makes one training run, from a parsed job to the files in output_dir.

1. Set up: check the job, connect to Ray, plan the workers, read and tokenize the files (`setup.py`).
2. Train on the workers (`driver.py`, `worker.py`).
3. Choose the model that the run leaves (`finish.py`), write the model, results and predictions, and make the
   lines of the summary.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rqa_ray.cluster.probe import wait_for_storage
from rqa_ray.cluster.workers import find_spare, where_evaluated
from rqa_ray.corpus.bm25 import HYBRID_FILE
from rqa_ray.evaluation import hybrid_report
from rqa_ray.evaluation.comparison import Comparison
from rqa_ray.evaluation.predictions import PASSAGES_FILE, Ranked, write_predictions
from rqa_ray.places import ALL_ARGS_FILE, REPORT_FILE, shown, staged
from rqa_ray.reports.pages import write_report
from rqa_ray.reports.weaknesses import against_bm25, weaknesses
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.training import checkpoints as stored
from rqa_ray.training import summary
from rqa_ray.training.batch_sizes import micro_batch_size
from rqa_ray.training.checkpoint_files import ADAPTER_FOLDER
from rqa_ray.training.driver import fit, stop_message
from rqa_ray.training.finish import EvalQuestions
from rqa_ray.training.finisher import Finisher, place_of
from rqa_ray.training.job import Job
from rqa_ray.training.loops import train_worker
from rqa_ray.training.model_card import BASE, BM25, CARD_FILE, model_card
from rqa_ray.training.output_folder import delete_files, push, with_local_output
from rqa_ray.training.result import TrainResult
from rqa_ray.training.run_record import RunRecord, open_run
from rqa_ray.training.run_report import page_of_run
from rqa_ray.training.setup import Setup, asked_of, serve_windows, set_up
from rqa_ray.training.trainer import TRAINER_STATE_FILE
from rqa_ray.training.uploads import StorageAway

# files and folders that not every finish writes; those of an earlier finish describe another model
PREDICTIONS = ("eval-predictions.jsonl", "test-predictions.jsonl", PASSAGES_FILE)
NOT_ALWAYS = (HYBRID_FILE, REPORT_FILE, "test_results.json", *PREDICTIONS, ADAPTER_FOLDER)


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
        setup.by_source.check(job.share, micro_batch)
    print("\n".join(lines))
    spare = find_spare(workers) if job.settings.async_eval else None
    if job.settings.async_eval:
        print(where_evaluated(workers, spare))
    record = open_run(job)
    setup.write_bad_records()
    print(f"checkpoints in {shown(record.storage_path)}")
    windows = serve_windows(setup.stream, job, workers) if setup.stream else None
    mining = setup.read_mining_texts() if job.settings.mine_negatives else None
    spec = setup.worker_spec(micro_batch=micro_batch, windows=windows, mining=mining, spare=spare)
    while True:
        try:
            spec = replace(spec, resume_from=record.resume_from)
            outcome = fit(train_worker, job, workers, spec, record.storage_path, record.run_names[-1])
            break
        except StorageAway as error:
            print(f"warning: {error}; waiting until it answers")
            wait_for_storage(record.storage_path)
            record = open_run(replace(job, resume="true"))
    if outcome.stopped_by:
        stop_message(job, outcome.result.step, outcome.stopped_by)
    whole = record.checkpoints()
    evaluations = stored.list_evaluations(record.storage_path, record.run_names)
    place = place_of(record.storage_path, record.run_names[0])
    about = setup.model, whole, place, evaluations, outcome.result.metrics
    return finish(setup, job, record, *about, starting=outcome.starting)


def finish(
    setup: Setup,
    job: Job,
    record: RunRecord,
    model: ModelSpec,
    whole: list[stored.StoredCheckpoint],
    place: str,
    evaluations: list[tuple[int, dict[str, float]]],
    train_metrics: dict[str, Any],
    next_command: str | None = None,
    starting: float = 0.0,
) -> TrainResult:
    """Chooses among the stored checkpoints of a run, and writes output_dir.

    `evaluations` are the steps and metrics of the evaluations that were made beside training. `place` is the folder or
    URI of what the finish stores. `starting` is how long the workers took to start (seconds). Files of an earlier
    finish that describe another model are deleted.
    """
    began = time.monotonic()
    splits, documents = asked_of(setup.blocks)
    asked = splits["eval"]
    questions = EvalQuestions(asked.gold_ids, documents.passage_ids, asked.clusters.labels)
    finisher = Finisher(setup, job, model, whole, place, questions, setup.fingerprints())
    made_up = finisher.make_up_evaluations()
    choice = finisher.choose()
    before = summary.ModelState(0, finisher.before())
    best = summary.ModelState(choice.candidate.step, choice.evaluation, finisher.learned_temperature(choice.candidate))
    compared = {
        split: Comparison.of(asked, documents, *(of.evaluation.splits[split].positions for of in (before, best)))
        for split, asked in splits.items()
    }
    lines, intervals = summary.compare(compared, before, best, job.settings.matryoshka_dims or ())
    rivals = {BASE: compared} | ({BM25: bm25} if (bm25 := against_bm25(compared, documents, best.evaluation)) else {})
    not_compared = "" if bm25 else f"BM25 was not measured: {hybrid_report.why_not(len(documents.passage_ids))}."
    worse = weaknesses(rivals)
    folder = Path(job.output_dir)
    with staged(folder) as staging:
        finisher.write_model(choice.candidate, staging)
        if job.settings.lora_r and job.settings.save_adapter:
            lines.append(finisher.write_adapter(choice.candidate, staging / ADAPTER_FOLDER))
        whole[-1].download(TRAINER_STATE_FILE, staging / TRAINER_STATE_FILE)
        summary.add_evaluations(staging / TRAINER_STATE_FILE, [*evaluations, *made_up])
        sources = setup.by_source.counts(job.share)
        summary.write_files(staging, job, best, train_metrics, intervals, choice, sources)
        model_card(job, model, before, best, choice, rivals, worse, not_compared).save(staging / CARD_FILE)
        given = documents.passage_ids, best.evaluation, staging, setup.texts.read_index
        lines.append(hybrid_report.report(splits, *given))
        if job.settings.write_predictions:
            scores = {split: found.scores for split, found in best.evaluation.splits.items()}
            ranked = {
                split: Ranked(of.asked, scores[split], of.positions[1], of.values[1]) for split, of in compared.items()
            }
            write_predictions(staging, ranked, documents.document, job.settings.predictions_top_k)
        verdict = [*choice.describe(), lines[-1]]  # the page shows the metrics itself
        note = whole[-1].note
        finishing = time.monotonic() - began
        spent = replace(note.spent, reading=setup.seconds, starting=starting, finishing=finishing)
        note = replace(note, spent=spent)
        about = staging, setup, job, choice, verdict, compared, documents, note
        report = write_report(staging, job.location, lambda: page_of_run(*about).html())
        written = {str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()}
        stale = {name for name in record.files if name.startswith(NOT_ALWAYS)} - written
        record.files = sorted(written | set(record.files))
        record.save(job.output_dir)
    delete_files(job, stale)
    push(job)
    old, new = (
        {f"{split}_{name}": ends for split, of in compared.items() for name, ends in of.intervals[side].items()}
        for side in (0, 1)
    )
    return TrainResult(
        output_dir=job.location,
        best_step=best.step,
        chosen=str(choice.candidate),
        before=before.evaluation.metrics,
        metrics=best.evaluation.metrics,
        before_intervals=old,
        intervals=new,
        weaknesses=worse,
        files=[name for name in record.files if (folder / name).exists()],
        summary=summary.last_lines(job, lines, choice, report, next_command),
    )
