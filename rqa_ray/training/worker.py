"""Runs one training worker of Ray Train: fetches the data, trains, returns the result."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import ray
import ray.train
import ray.util
import torch
import transformers

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.data.streaming import fetcher
from rqa_ray.data.windows import WindowedRows
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.places import open_location, shown
from rqa_ray.ray_environment import forget_accelerate
from rqa_ray.retriever import distributed
from rqa_ray.retriever.agreement import check_against_sentence_transformers
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.forward_plan import ForwardPlan
from rqa_ray.retriever.interrupts import Interrupted
from rqa_ray.scratch import scratch_folder
from rqa_ray.training.arguments import RetrieverTrainingArguments, loggers_of
from rqa_ray.training.assembly import TrainingData, assemble
from rqa_ray.training.checkpoint_files import StepNote
from rqa_ray.training.checkpoints import local_checkpoint, read_checkpoint, write_evaluation
from rqa_ray.training.finish import num_merged
from rqa_ray.training.forecast import Forecast
from rqa_ray.training.plan_forward import compile_transformer
from rqa_ray.training.report_callback import PushLogs, ReportCallback
from rqa_ray.training.spec import WorkerResult, WorkerSpec
from rqa_ray.training.trainer import ContrastiveTrainer, NonFiniteLossError
from rqa_ray.training.uploads import StorageError, Uploads, is_full

# The words with which gloo and nccl say that a rank waited for others.
WAITED_IN_VAIN = ("imed out", "onnection closed", "onnection reset")


def train_worker(spec: WorkerSpec) -> WorkerResult:
    """Trains on this rank and returns its result."""
    _be_quiet()
    # At once: a worker that is killed while it loads the model has to leave its place on the cluster too.
    spec.mailbox.keep_group.remote(spec.run, ray.util.get_current_placement_group())
    forget_accelerate()
    torch.set_num_threads(spec.num_cpus)

    def tell_of_damage(text: str) -> None:
        if distributed.rank() == 0:
            spec.mailbox.put.remote(spec.run, None, text)

    with (
        scratch_folder() as scratch,
        local_checkpoint(spec.resume_from, spec.report is None, tell_of_damage) as checkpoint,
    ):
        note = StepNote.load(Path(checkpoint)) if checkpoint else StepNote(0)
        trainer = build_trainer(spec, scratch, checkpoint)
        reports = spec.report or Uploads(
            lambda text: spec.mailbox.put.remote(spec.run, None, text),
            lambda: ray.get(spec.mailbox.is_stopping.remote()),
        )
        report = _reporting(spec, trainer, reports, note, scratch)
        try:
            if checkpoint and spec.resume_from and note.evaluation_pending:
                _make_up_evaluation(trainer, checkpoint, spec.resume_from)
            if checkpoint and trainer.is_finished(checkpoint):  # the run was killed after its last checkpoint
                return WorkerResult(trainer.state.global_step)
            metrics, failure = trainer.train(resume_from_checkpoint=checkpoint).metrics, None
        except Interrupted:
            report.stopped, metrics, failure = True, {}, None
            trainer.save_interrupted()
        except NonFiniteLossError as error:  # all ranks raise it together, and a restart would fail at the same step
            metrics, failure = {}, str(error)
        except Exception as error:
            if is_full(error):
                raise StorageError(f"{scratch}: no space left for a checkpoint; set TMPDIR to another disk") from None
            if any(words in str(error) for words in WAITED_IN_VAIN):
                ray.get(spec.mailbox.gave_up.remote(spec.run, trainer.args.process_index))
            raise
        finally:
            if isinstance(reports, Uploads):
                reports.wait()  # the local checkpoints are deleted after this block
        early = trainer.why_early()
        if early and trainer.args.process_index == 0:
            spec.mailbox.put.remote(spec.run, None, early)
        if spec.spare:
            report.send(phase="waiting for the last evaluation", total=0)
        step = max(trainer.state.global_step, note.step)  # a stop may come before the Trainer has loaded the state
        return WorkerResult(step, report.stopped, failure, metrics)


def build_trainer(spec: WorkerSpec, scratch: str, checkpoint: str | None) -> ContrastiveTrainer:
    """Builds the trainer of this rank. The trainer writes into `scratch`, and resumes from the folder `checkpoint`."""
    settings, model = spec.settings, spec.model
    args = _training_arguments(spec, scratch, evaluates_first=not spec.before and checkpoint is None)
    bring_model(model.folder, model.copy)
    encoder = load_encoder(model.folder, model.settings, settings.dropout, settings.trust_remote_code)
    if args.process_index == 0:
        for note in check_against_sentence_transformers(encoder):
            spec.mailbox.put.remote(spec.run, None, note)
    encoder.can_pack = not distributed.any_rank(not encoder.can_pack, args.device)  # rank 0 has checked the model
    if encoder.can_pack and args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # these models use all of their parameters
    if args.torch_compile:
        args = compile_transformer(encoder, args)
    tables = {name: fetch_tables(refs) for name, refs in spec.blocks.items()}
    rows: TrainingRows | WindowedRows
    if spec.windows:
        windows, store = spec.windows
        rows = WindowedRows(windows, fetcher(store))
    else:
        rows = TrainingRows.of_share(tables["train"], spec.share)
    splits: dict[str, Questions] = {}
    splits |= {split: Questions.from_tables(tables[split]) for split in ("eval", "test") if split in tables}
    texts = ray.get(spec.mining) if settings.mine_negatives else None
    if texts and isinstance(rows, TrainingRows) and len(texts.wordings.of_pairs) > len(rows):  # those of a search
        texts = texts.of_pairs(spec.share.numbers(tables["train"]), rows.passage_ids)
    trainer = assemble(
        encoder,
        args,
        settings,
        TrainingData(
            rows,
            Corpus.from_tables(tables["corpus"]),
            splits,
            texts,
            spec.bm25 and ray.get(spec.bm25),
            spec.sources.of_rows(tables["train"], spec.share) if spec.sources else None,
        ),
        spec.micro_batch,
        eval_precision=spec.eval_precision,
        plan=ForwardPlan.load(Path(checkpoint)) if checkpoint else None,
        memory_sharers=spec.memory_sharers,
        evaluates_beside=spec.spare is not None,
        fsdp=spec.fsdp,
    )
    trainer.schedule.before, trainer.held_out = spec.before, spec.held_out
    if args.process_index == 0:
        asked = {split: AskedQuestions(tables[split]) for split in splits}
        merged = num_merged(settings.finish)
        trainer.add_callback(
            Forecast(trainer, asked, lambda text: spec.mailbox.put.remote(spec.run, None, text), merged)
        )
    return trainer


def _reporting(spec: WorkerSpec, trainer: ContrastiveTrainer, reports, note: StepNote, scratch: str) -> ReportCallback:
    """Connects the trainer to Ray and to the driver, and tells the driver that this rank has started."""
    args, mailbox = trainer.args, spec.mailbox
    watches_preemption = not spec.report and os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") == "1"
    questions_per_step = spec.micro_batch * args.gradient_accumulation_steps
    to = trainer, mailbox, spec.run, questions_per_step, reports
    report = ReportCallback(*to, watches_preemption, spec.may_leave)
    where = f"node {ray.util.get_node_ip_address()}, process {os.getpid()}"
    attempt = ray.get(mailbox.begin.remote(spec.run, args.process_index, where))

    def tell(text: str) -> None:
        mailbox.put.remote(spec.run, None, text)

    if args.process_index == 0:
        if attempt > 1:
            workers = f"{args.world_size} worker{'s' * (args.world_size > 1)}"
            tell(f"restarted on {workers}, from step {note.step}")
        tell(trainer.batches.plan.describe())
        if trainer.rounds:
            trainer.rounds.tell = tell
    trainer.evaluator.on_progress = report.on_evaluation_progress
    trainer.add_callback(report)
    if "://" in spec.logging_location:
        trainer.add_callback(PushLogs(f"{scratch}/tensorboard", spec.logging_location, tell))
    return report


def _make_up_evaluation(trainer: ContrastiveTrainer, checkpoint: str, location: str) -> None:
    """Makes the evaluation that a stop has put off, and stores it beside the checkpoint."""
    stored, step = read_checkpoint(location), StepNote.load(Path(checkpoint)).step
    trainer.found_step = step
    if stored and stored.metrics:  # an earlier attempt has made it
        trainer.found = trainer.schedule.made_up = stored.evaluation()
        return
    trainer._load_from_checkpoint(checkpoint)
    trainer.found = trainer.schedule.made_up = trainer.rank_questions()
    if trainer.args.process_index == 0:
        filesystem, path = open_location(location)
        write_evaluation(ray.train.Checkpoint(path, filesystem), step, trainer.found)


def _training_arguments(spec: WorkerSpec, scratch: str, evaluates_first: bool) -> RetrieverTrainingArguments:
    """Builds the real TrainingArguments of this worker from the plain values of the spec."""
    settings, location = spec.settings, spec.logging_location
    world_size = 1 if spec.report else ray.train.get_context().get_world_size()
    for value, variable in (
        (settings.run_project, "WANDB_PROJECT"),
        (settings.run_group, "WANDB_RUN_GROUP"),
        (settings.run_entity, "WANDB_ENTITY"),
    ):
        if value:
            os.environ[variable] = value
    os.environ["TENSORBOARD_LOGGING_DIR"] = f"{scratch}/tensorboard" if "://" in location else location
    own = {
        "output_dir": scratch,
        "run_name": spec.training.get("run_name") or os.path.basename(shown(spec.output_dir)),
        "report_to": loggers_of(spec.training),
        "use_cpu": not spec.use_gpu,
        "disable_tqdm": True,
        # The Trainer computes samples per second from it.
        "per_device_train_batch_size": -(-spec.micro_batch // world_size),
        "eval_on_start": evaluates_first,  # the Trainer would evaluate after every resume too
        "save_strategy": "no",  # the Schedule decides when to save
        "save_total_limit": None,  # it limits stored checkpoints; the worker deletes its own copy after storing it
        "logging_nan_inf_filter": False,
        "fsdp": None,  # this program shards the model itself
        "ddp_broadcast_buffers": False,  # ranks may have different numbers of forward passes
    }
    return RetrieverTrainingArguments(**(spec.training | own))


def _be_quiet() -> None:
    """Silences warnings of transformers and accelerate that mean nothing to the user."""
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
