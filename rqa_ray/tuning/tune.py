"""Runs a search, from its parsed command to the best model in output_dir.

1. Set up as for one run. The data is tokenized once, and the pretrained model is evaluated once (`models.py`).
2. Ray Tune runs the trials (`trial.py`), each with the same budget (`budget.py`), while `watch.py` draws the table.
3. Only the winner is evaluated on the test questions. It is written to output_dir with trials.csv, its config and the
   report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
from pyarrow import fs
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from rqa_ray.cluster.workers import Workers, max_concurrent
from rqa_ray.errors import InputError, need_extra
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.places import absolute, inside, open_location, read_json, shown, storage_for_ray, write_json
from rqa_ray.reports.learning_curve import LearningCurve
from rqa_ray.reports.search_page import PAGE_FILE, PICTURE_FILE, write_report
from rqa_ray.reports.trials import TRIALS_FILE, Choices, Range, Trial, ranked, table_lines, write_trials
from rqa_ray.training.checkpoints import SCORE
from rqa_ray.training.driver import STOP_EXIT_CODES, Stopped, how_to_go_on
from rqa_ray.training.job import Job
from rqa_ray.training.mailbox import new_mailbox
from rqa_ray.training.output_folder import push, storage_of, with_local_output
from rqa_ray.training.reasons import memory_problem
from rqa_ray.training.run_record import RunRecord, changed_settings, delete_run, new_run_name
from rqa_ray.training.setup import set_up
from rqa_ray.tuning.models import evaluate_pretrained, leave_winner
from rqa_ray.tuning.options import Search
from rqa_ray.tuning.plan import SearchPlan
from rqa_ray.tuning.result import TuneResult
from rqa_ray.tuning.space import check_optimizers
from rqa_ray.tuning.trial import Shared, run_trial
from rqa_ray.tuning.watch import Watch

SEARCH_ARGS_FILE = "search_args.json"
TUNE_FOLDER = "tune"  # folder of Ray Tune's own state, beside the checkpoints
REDUCTION = 2  # at a quarter and at half of the budget, the better half goes on
RETRIES = 1  # how often a trial that crashes is tried again
DRIVER = {"CPU": 0, "memory": 2**28}  # resources of a driver of workers; Tune refuses an empty bundle


def tune(asked: Search) -> TuneResult:
    """Runs a search to its end.

    Raises:
        InputError: the user's input or arguments are wrong; nothing was written.
        Stopped: a signal ended the search; finished trials are kept.
    """
    settings = asked.settings
    if settings.search_alg == "optuna":
        need_extra("--search_alg optuna", "optuna", "optuna")
    check_optimizers(asked.space, asked.job)
    asked = replace(asked, job=with_local_output(asked.job))
    setup = set_up(asked.job, SEARCH_ARGS_FILE)
    job, workers = setup.job, setup.workers
    plan = SearchPlan.of(asked, job, setup.num_rows, setup.shared)
    at_once = trials_at_once(settings.max_concurrent_trials, workers)
    has_negatives = setup.has_negatives or plan.mines
    lines = plan.describe_batches(workers.num_workers, has_negatives, setup.has_scores or plan.is_taught)
    if job.settings.homogeneous_batches:
        plan.check_sources(setup.by_source)
    print("\n".join([*plan.describe(asked, at_once), *lines]))
    record = open_search(asked, job)
    setup.write_bad_records()
    root = inside(record.storage_path, record.run_names[0])
    print(f"checkpoints in {shown(root)}")

    mining = setup.read_mining_texts() if plan.mines else None
    before = evaluate_pretrained(setup, plan.space, root)
    name = f"mailbox-{record.run_names[0]}"
    mailbox = new_mailbox(name)  # the mailbox lives as long as this reference
    shared = Shared(
        job=job,
        budget=plan.budget,
        workers=workers,
        at_once=at_once,
        spec=setup.worker_spec(mining=mining),
        stream=setup.stream,
        has_negatives=has_negatives,
        root=root,
        mailbox=name,
        before=before,
    )
    folder, names, metric = Path(job.output_dir), list(plan.space), job.training["metric_for_best_model"]
    watch = Watch(
        output_dir=str(folder.absolute()),
        root=root,
        mailbox=name,
        names=names,
        metric=metric,
        budget_pairs=plan.budget.pairs,
        evaluations=plan.budget.evaluations,
        total=plan.total,
        has_workers=not shared.trains_in_process,
        quiet=bool(job.training.get("disable_tqdm")),
    )
    trials = run_trials(asked, plan, shared, watch)
    del mailbox
    write_trials(folder, trials, names, metric)
    watch.delete_others(trials)  # also checkpoints that workers stored after their trial was stopped
    print("\n".join(table_lines(trials, names, metric, plan.budget.pairs)))
    order = ranked(trials, metric)
    if not order:
        reasons = "; ".join(dict.fromkeys(trial.problem for trial in trials if trial.problem))
        print(f"error: no trial got as far as its first evaluation: {reasons}", file=sys.stderr)
        raise SystemExit(1)
    clusters = AskedQuestions(setup.blocks["eval"].tables()).clusters.labels
    curve = LearningCurve.of(trials, metric, clusters) if "train_share" in plan.space else None
    for line in write_report(folder, trials, plan.space, metric, order[0], curve):
        print(line)
    model = leave_winner(setup, record, shared, order[0])
    return TuneResult(model, metric, order[0], trials, files=model.files, report=inside(job.location, PAGE_FILE))


def trials_at_once(asked: str, workers: Workers) -> int:
    """Returns how many trials run at the same time: as many as fit on the cluster, or fewer if the user says so."""
    fitting = max_concurrent(workers)
    if asked != "auto" and int(asked) > fitting:
        print(f"note: --max_concurrent_trials {asked}: the cluster can hold only {fitting} at a time")
    return fitting if asked == "auto" else min(int(asked), fitting)


def open_search(asked: Search, job: Job) -> RunRecord:
    """Prepares output_dir for a new search, or continues the search in it.

    Raises:
        InputError: the search cannot go on with these arguments.
    """
    folder = Path(job.output_dir)
    previous = RunRecord.read(job)
    if job.resume and previous:
        previous.refuse_storage_of_others(job)
        began_with = read_json(folder / SEARCH_ARGS_FILE)
        if began_with is None:
            raise InputError(f"--resume: {folder} has a training run in it, and no search")
        changed = changed_settings(began_with, asked.to_config())
        if changed:
            raise InputError(f"--resume: a search goes on with the arguments that it began with; changed: {changed}")
        previous.save(job.output_dir)  # the folder may have been moved
        return previous
    if job.resume:
        print("note: no search to resume; starting anew")
    elif previous:
        delete_run(job, previous)
    record = RunRecord(
        absolute(job.location),
        storage_of(job),
        [new_run_name(folder)],
        files=[SEARCH_ARGS_FILE, TRIALS_FILE, PAGE_FILE, PICTURE_FILE],
    )
    folder.mkdir(parents=True, exist_ok=True)
    record.save(job.output_dir)
    write_json(folder / SEARCH_ARGS_FILE, asked.to_config())
    push(job)
    return record


def run_trials(asked: Search, plan: SearchPlan, shared: Shared, watch: Watch) -> list[Trial]:
    """Runs all trials with Ray Tune; skips those that its stored state knows as finished.

    Raises:
        Stopped: a signal ended the search.
    """
    bundle = shared.workers.resources if shared.trains_in_process else DRIVER
    trainable: Any = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, shared=shared), ray.tune.PlacementGroupFactory([bundle])
    )
    state = inside(shared.root, TUNE_FOLDER)
    if asked.job.resume and has_state(state):
        place = storage_for_ray(state)
        path, filesystem = place["storage_path"], place.get("storage_filesystem")
        tuner = ray.tune.Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=filesystem)
        # the stored callback knows only the folder before a move
        tuner._local_tuner.get_run_config().callbacks = [watch]
    else:
        tuner = new_tuner(asked, plan, shared, watch, trainable)
    code = 0

    def on_signal(number: int, _: Any) -> None:
        nonlocal code
        if code:
            os._exit(code)
        code = STOP_EXIT_CODES[signal.Signals(number)]
        print("stopping the search; a second signal stops at once", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGUSR1)  # on this signal, Tune saves its state and ends its trials

    handlers = {number: signal.signal(number, on_signal) for number in STOP_EXIT_CODES}
    try:
        results = tuner.fit()
    except RuntimeError as error:  # Tune cannot go on without a process that Ray's memory monitor has killed
        killed = memory_problem(str(error))
        if not killed:
            raise
        print(f"error: {killed}\n{how_to_go_on(asked.job)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    watch.free_workers([trial.trial_id for trial in results._experiment_analysis.trials])
    if code:
        print(f"stopped; trials that have ended are kept; {how_to_go_on(asked.job)}")
        raise Stopped(code)
    return watch.read(results._experiment_analysis.trials)


def new_tuner(asked: Search, plan: SearchPlan, shared: Shared, watch: Watch, trainable: Any) -> ray.tune.Tuner:
    """Returns a Tuner for the search."""
    settings, seed = asked.settings, plan.job.training["seed"]
    # While workers train, the driver of one more trial starts: this saves 8 of the 18 s that a trial needs to start.
    # So chance decides which of two drivers gets workers first. The result of a trial does not depend on the order.
    at_once = shared.at_once + (not shared.trains_in_process)
    algorithm: Any = BasicVariantGenerator(plan.points, max_concurrent=at_once, random_state=seed)
    if settings.search_alg == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        algorithm = OptunaSearch(metric=SCORE, mode="max", seed=seed)
    scheduler: Any = FIFOScheduler()
    if settings.scheduler == "asha":
        last = plan.budget.evaluations
        scheduler = ASHAScheduler(
            time_attr="evaluation",
            max_t=last,
            grace_period=max(1, last // 4),
            reduction_factor=REDUCTION,
            stop_last_trials=False,  # a trial that has made all of its steps ends by itself
        )
    plain = shared.job.training["report_to"] in (None, "none", "tensorboard")
    return ray.tune.Tuner(
        trainable,
        param_space={name: domain(dimension) for name, dimension in plan.space.items()},
        tune_config=ray.tune.TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler,
            search_alg=algorithm,
            num_samples=plan.total,
            max_concurrent_trials=at_once,  # optuna needs the limit here
            time_budget_s=settings.time_budget_s,
            # Some trackers cannot end a run and start another in one process.
            reuse_actors=shared.trains_in_process and plain,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE_FOLDER,
            **storage_for_ray(shared.root),
            failure_config=ray.tune.FailureConfig(max_failures=max(RETRIES, plan.job.max_failures)),
            callbacks=[watch],
            verbose=0,
        ),
    )


def domain(dimension: Choices | Range) -> Any:
    """Returns a dimension in the form from which Tune draws; a range includes both ends."""
    if isinstance(dimension, Choices):
        return ray.tune.choice(list(dimension.values))
    if dimension.is_whole:
        draw = ray.tune.lograndint if dimension.is_log else ray.tune.randint
        return draw(int(dimension.low), int(dimension.high) + 1)
    return (ray.tune.loguniform if dimension.is_log else ray.tune.uniform)(dimension.low, dimension.high)


def has_state(location: str) -> bool:
    """Returns whether Tune can go on from its stored state.

    Deletes states that a kill cut short, because Tune takes the newest.
    """
    filesystem, path = open_location(location)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    whole = 0
    for file in found:
        if file.base_name.startswith("experiment_state-"):
            with filesystem.open_input_stream(file.path) as stream:
                content = stream.read()
            try:
                json.loads(content)
                whole += 1
            except ValueError:
                filesystem.delete_file(file.path)
    return whole > 0 and ray.tune.Tuner.can_restore(path, storage_filesystem=filesystem)
