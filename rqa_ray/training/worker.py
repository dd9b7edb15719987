"""What one training worker of Ray Train does: take the blocks, train, hand back the numbers."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.util
import torch
import transformers

from rqa_ray.cluster.model_copies import bring_model
from rqa_ray.data.readers import fetch_tables
from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.streaming import fetcher
from rqa_ray.data.windows import WindowedRows
from rqa_ray.places import inside, open_location, shown
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.interrupts import Interrupted
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.settings import Settings
from rqa_ray.training import summary as outputs
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.checkpoints import local_checkpoint, write_evaluation
from rqa_ray.training.forward_plan import build_trainer, describe
from rqa_ray.training.report_callback import PushLogs, ReportCallback
from rqa_ray.training.trainer import EVALUATION_FILE, ContrastiveTrainer, NonFiniteLossError
from rqa_ray.training.uploads import StorageError, Uploads, is_full

# How gloo and nccl say that this rank waited for others.
WAITED_IN_VAIN = ("imed out", "onnection closed", "onnection reset")


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; returns step, whether it was stopped, and transformers' training metrics.

    `config` is that of `Setup.worker_config`, and: micro_batch, windows, mailbox, run (its name there), resume_from
    (checkpoint folder or None). Optional: beside, the resources of an evaluation beside training; before, the results
    of step 0, made elsewhere; report, in place of Ray Train's where this is no worker of it; memory_sharers, runs that
    share a node's memory.
    """
    _be_quiet()
    torch.set_num_threads(config["cpus"])
    settings = Settings(**config["settings"])
    tables = {name: fetch_tables(refs) for name, refs in config["blocks"].items()}
    with (
        tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch,
        local_checkpoint(config["resume_from"], is_worker="report" not in config) as resume,
    ):
        args = _training_arguments(config, scratch, config.get("before") is None and resume is None)
        bring_model(config["model_folder"], config["model_copy"])
        encoder = load_encoder(config["model_folder"], config["encoder"], settings.dropout, settings.trust_remote_code)
        if encoder.can_pack and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # these models use all of theirs
        tokenizer = TextTokenizer(config["model_folder"], config["encoder"], settings.trust_remote_code).tokenizer
        rows: TrainingRows | WindowedRows
        if config["windows"]:
            plan, store = config["windows"]
            rows = WindowedRows(plan, fetcher(store))
        else:
            rows = TrainingRows.from_tables(tables["train"])
        beside = config.get("beside") is not None
        trainer = build_trainer(
            settings,
            args,
            encoder,
            tokenizer,
            rows,
            tables,
            config["micro_batch"],
            resume,
            beside,
            config.get("memory_sharers", 1),
        )
        if config.get("before"):
            trainer.take_before(config["before"])
        questions_per_step = config["micro_batch"] * args.gradient_accumulation_steps
        mailbox, run, in_tune = config["mailbox"], config["run"], "report" in config

        def tell(note: str) -> None:
            mailbox.put.remote(run, None, note)

        how = config["report"] if in_tune else Uploads(tell)
        watches_preemption = not in_tune and os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") == "1"
        report = ReportCallback(trainer, mailbox, run, questions_per_step, how, watches_preemption)
        where = f"node {ray.util.get_node_ip_address()}, process {os.getpid()}"
        attempt = ray.get(mailbox.begin.remote(run, args.process_index, where))
        if args.process_index == 0:
            if attempt > 1:
                workers = f"{args.world_size} worker{'s' * (args.world_size > 1)}"
                tell(f"restarted on {workers}, from step {_step_of(resume)}")
            tell(describe(trainer.choices))
            mailbox.hold.remote(run, ray.util.get_current_placement_group())
        trainer.evaluator.on_progress = report.on_evaluation_progress
        trainer.add_callback(report)
        if "://" in logging_location(config):
            trainer.add_callback(PushLogs(f"{scratch}/tensorboard", logging_location(config), tell))
        metrics, failure = {}, None
        try:
            if resume and config["resume_from"]:
                _make_up_evaluation(trainer, resume, config["resume_from"])
            if resume and trainer.is_finished(resume):  # killed after its last checkpoint
                return {"step": trainer.state.global_step, "stopped": False, "failure": None, "metrics": {}}
            metrics = trainer.train(resume_from_checkpoint=resume).metrics
        except Interrupted:
            report.stopped = True
            trainer.save_interrupted()
        except NonFiniteLossError as error:  # on all ranks together; a restart by Ray would meet it again
            failure = str(error)
        except Exception as error:
            if is_full(error):
                raise StorageError(f"{scratch}: no space left for a checkpoint; set TMPDIR to another disk") from None
            if any(words in str(error) for words in WAITED_IN_VAIN):
                ray.get(mailbox.gave_up.remote(run, args.process_index))
            raise
        finally:
            if isinstance(how, Uploads):
                how.wait()  # before the folder of the local checkpoints is deleted
        step = max(trainer.state.global_step, _step_of(resume))  # a stop may come before the state is loaded
        if beside:
            report.progress.phase, report.progress.total = "waiting for the last evaluation", 0
            report.send()
        return {"step": step, "stopped": report.stopped, "failure": failure, "metrics": metrics}


def _step_of(checkpoint: str | None) -> int:
    return json.loads((Path(checkpoint) / EVALUATION_FILE).read_text())["step"] if checkpoint else 0


def _make_up_evaluation(trainer: ContrastiveTrainer, checkpoint: str, location: str) -> None:
    """Makes the evaluation that a stop has put off, and stores it beside the checkpoint."""
    if json.loads((Path(checkpoint) / EVALUATION_FILE).read_text()).get("pending"):
        trainer._load_from_checkpoint(checkpoint)
        with trainer.interrupts.watch(True):
            results = trainer.evaluator.evaluate(trainer.model)
        if trainer.args.process_index == 0:
            filesystem, path = open_location(location)
            write_evaluation(ray.train.Checkpoint(path, filesystem), _step_of(checkpoint), results)


def logging_location(config: dict[str, Any]) -> str:
    """Where TensorBoard files go: a folder, or a URI to which they are copied with every checkpoint."""
    given = config["settings"]["logging_dir"] or inside(config["output_dir"], outputs.TENSORBOARD_FOLDER)
    return given if "://" in given else os.path.join(config["cwd"], given)


def _training_arguments(config: dict[str, Any], scratch: str, evaluates_first: bool) -> RetrieverTrainingArguments:
    settings, training, output_dir = config["settings"], config["training"], config["output_dir"]
    world_size = 1 if "report" in config else ray.train.get_context().get_world_size()
    for name, variable in {
        "run_project": "WANDB_PROJECT",
        "run_group": "WANDB_RUN_GROUP",
        "run_entity": "WANDB_ENTITY",
    }.items():
        if settings[name]:
            os.environ[variable] = settings[name]
    logging_dir = logging_location(config)
    os.environ["TENSORBOARD_LOGGING_DIR"] = f"{scratch}/tensorboard" if "://" in logging_dir else logging_dir
    own = {
        "output_dir": scratch,
        "run_name": training.get("run_name") or os.path.basename(shown(output_dir)),
        "use_cpu": not config["use_gpu"],
        "disable_tqdm": True,
        # For samples per second: what each worker really has.
        "per_device_train_batch_size": -(-config["micro_batch"] // world_size),
        "eval_on_start": evaluates_first,  # else it would run after every resume
        "save_strategy": "no",  # SaveWithEvaluation saves
        "logging_nan_inf_filter": False,
        "ddp_broadcast_buffers": False,  # ranks may forward unequal numbers of token batches
    }
    return RetrieverTrainingArguments(**(training | own))


def _be_quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
