"""What one training worker does: build the trainer from plain data, train, hand back the numbers. Ray calls it."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.train
import torch
import transformers

from rqa_ray.arguments import RetrieverTrainingArguments, Settings
from rqa_ray.data.batches import GlobalBatches
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.evaluation.evaluate import RetrievalEvaluator
from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.saving import load_encoder
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.training import outputs
from rqa_ray.training.checkpoints import ReportCallback, local_checkpoint
from rqa_ray.training.trainer import CHOICES_FILE, ContrastiveTrainer, NonFiniteLossError

TOKENS_PER_CHUNK = {"cpu": 1_000, "cuda": 32_768}  # on CPUs, what stays in the cache: 4,000 take 1.6 times as long
MEMORY_SHARE = 0.5  # of the free memory that the graph of a batch may take before gradient caching steps in


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; returns step, whether it was stopped, and transformers' training metrics."""
    _be_quiet()
    torch.set_num_threads(config["cpus"])
    settings = Settings(**config["settings"])
    tables = {name: [table for table in ray.get(refs) if len(table)] for name, refs in config["blocks"].items()}
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch, local_checkpoint(config["resume_from"]) as resume:
        args = _training_arguments(config, scratch, resume is not None)
        encoder = load_encoder(config["model_folder"], config["encoder"], settings.dropout, settings.trust_remote_code)
        tokenizer = TextTokenizer(config["model_folder"], config["encoder"], settings.trust_remote_code).tokenizer
        trainer = build_trainer(settings, args, encoder, tokenizer, tables, config["micro_batch"], resume)
        accumulation = args.gradient_accumulation_steps
        report = ReportCallback(trainer, config["mailbox"], config["micro_batch"] * accumulation)
        if args.process_index == 0:
            choice = "with" if trainer.choices["gradient_cache"] else "without"
            note = f"chunks of at most {trainer.choices['max_tokens_per_chunk']:,} tokens, {choice} gradient caching"
            config["mailbox"].put.remote(None, note)
        if resume and trainer.is_finished(resume):  # killed after its last checkpoint
            return {"step": trainer.state.global_step, "stopped": False, "failure": None, "metrics": {}}
        trainer.evaluator.on_progress = report.on_evaluation_progress
        trainer.add_callback(report)
        try:
            metrics, failure = trainer.train(resume_from_checkpoint=resume).metrics, None
        except NonFiniteLossError as error:  # on all ranks together; a restart by Ray would meet it again
            metrics, failure = {}, str(error)
        step = trainer.state.global_step
        return {"step": step, "stopped": report.stopped, "failure": failure, "metrics": metrics}


def build_trainer(
    settings: Settings,
    args: RetrieverTrainingArguments,
    encoder: Encoder,
    tokenizer: Any,
    tables: dict[str, list],
    micro_batch: int,
    resume: str | None = None,
) -> ContrastiveTrainer:
    """The trainer of one rank from tokenised tables (`train`, `eval`, `corpus`, maybe `test`)."""
    rows = TrainingRows.from_tables(tables["train"])
    pad_id = tokenizer.pad_token_id or 0
    choices = choose(settings, args, encoder, rows, micro_batch)
    if resume:  # what was found out is used again, what the user says goes first
        before = outputs.read_json(Path(resume) / CHOICES_FILE)
        found_out = [settings.max_tokens_per_chunk is None and "max_tokens_per_chunk"]
        found_out += [settings.gradient_cache == "auto" and "gradient_cache"]
        choices |= {name: before[name] for name in found_out if name}
    batches = GlobalBatches(
        rows,
        global_batch_size=micro_batch,
        hard_neg_ratio=settings.hard_neg_ratio,
        seed=args.seed if args.data_seed is None else args.data_seed,
        max_tokens_per_chunk=choices["max_tokens_per_chunk"],
        pad_id=pad_id,
        rank=args.process_index,
        world_size=args.world_size,
    )
    evaluator = RetrievalEvaluator(
        Corpus.from_tables(tables["corpus"]),
        {split: Questions.from_tables(tables[split]) for split in ("eval", "test") if split in tables},
        temperature=settings.temperature,
        pad_id=pad_id,
        max_tokens_per_chunk=choices["max_tokens_per_chunk"],
        max_rows_per_chunk=args.per_device_eval_batch_size,
        mixed_precision=torch.bfloat16 if args.bf16_full_eval else torch.float16 if args.fp16_full_eval else None,
    )
    return ContrastiveTrainer(
        encoder,
        tokenizer,
        args,
        batches,
        evaluator,
        temperature=settings.temperature,
        choices=choices,
        trust_remote_code=settings.trust_remote_code,
    )


def choose(
    settings: Settings, args: RetrieverTrainingArguments, encoder: Encoder, rows: TrainingRows, micro_batch: int
) -> dict[str, Any]:
    """The settings that are found out: chunk size by device, gradient caching by memory."""
    max_tokens = settings.max_tokens_per_chunk or TOKENS_PER_CHUNK.get(args.device.type, TOKENS_PER_CHUNK["cuda"])
    if settings.gradient_cache != "auto":
        return {"max_tokens_per_chunk": max_tokens, "gradient_cache": settings.gradient_cache == "true"}
    if args.device.type == "cuda":
        free = torch.cuda.mem_get_info(args.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    texts = rows.questions.lengths.mean() + rows.passages.lengths.mean() * (1 + settings.hard_neg_ratio)
    longest = int(max(rows.questions.lengths.max(), rows.passages.lengths.max()))
    needed = encoder.activation_bytes(int(texts * micro_batch / args.world_size), longest)
    too_large = distributed.any_rank(needed > MEMORY_SHARE * free, args.device)
    return {"max_tokens_per_chunk": max_tokens, "gradient_cache": too_large}


def _training_arguments(config: dict[str, Any], scratch: str, resuming: bool) -> RetrieverTrainingArguments:
    settings, training, output_dir = config["settings"], config["training"], config["output_dir"]
    for name, variable in {
        "run_project": "WANDB_PROJECT",
        "run_group": "WANDB_RUN_GROUP",
        "run_entity": "WANDB_ENTITY",
    }.items():
        if settings[name]:
            os.environ[variable] = settings[name]
    logging_dir = os.path.join(
        config["cwd"], settings["logging_dir"] or os.path.join(output_dir, outputs.TENSORBOARD_FOLDER)
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = logging_dir
    own = {
        "output_dir": scratch,
        "run_name": training.get("run_name") or os.path.basename(output_dir),
        "use_cpu": not config["use_gpu"],
        "disable_tqdm": True,
        # For samples per second: what each worker really has.
        "per_device_train_batch_size": -(-config["micro_batch"] // config["num_workers"]),
        "eval_on_start": not resuming,  # it would run after every resume
        "save_strategy": "no",  # SaveWithEvaluation saves
        "logging_nan_inf_filter": False,
        "ddp_broadcast_buffers": False,  # ranks may forward unequal numbers of chunks
    }
    return RetrieverTrainingArguments(**(training | own))


def _be_quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
