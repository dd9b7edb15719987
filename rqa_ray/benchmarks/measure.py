"""Measures some steps of one contender, and what they are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from rqa_ray.benchmarks.contenders import Contender, Stopwatch, Workload
from rqa_ray.benchmarks.processes import Figures
from rqa_ray.retriever import distributed
from rqa_ray.retriever.encoder_settings import transformer_folder


def measure(workload: Workload, seed: int, steps: int, threads: int, began: float, contender: Contender) -> Figures:
    """Returns figures about some steps of a contender on all ranks.

    `began` is the time at which they were asked for.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    stopwatch = Stopwatch(workload.device)
    batches = workload.batches(seed, distributed.rank(), distributed.world_size())
    tokens = contender(workload, batches, steps, stopwatch)
    figures = stopwatch.figures
    own = torch.tensor([[figures["cpu_seconds"], float(tokens)]], dtype=torch.float64, device=workload.device)
    totals = distributed.gather(own)
    cpu_seconds, tokens = totals.sum(0).tolist()
    lengths = [np.array([len(row) for row in rows]) for rows in (workload.question_tokens, workload.passage_tokens)]
    rows = np.concatenate([batches.take(index)[1] for index in range(1, steps + 1)])
    flops = sum(training_flops(workload.model_folder, part[rows]) for part in lengths)
    pairs = {"pairs_per_second": figures["seconds"], "pairs_per_cpu_second": cpu_seconds}
    rate = "pairs_per_second" if workload.device.type == "cuda" else "pairs_per_cpu_second"
    return {
        **figures,
        **{name: len(rows) / time_taken for name, time_taken in pairs.items()},
        "rate": len(rows) / pairs[rate],
        "useful_tokens_per_pair": float(sum(part[rows].mean() for part in lengths)),
        "computed_tokens_per_pair": tokens / len(rows),
        "useful_flops_per_second": flops / pairs[rate],
        "seconds_to_second_step": stopwatch.started_at - began,
    }


def training_flops(model_folder: str, lengths: np.ndarray) -> float:
    """Counts the floating-point operations of forward and backward on texts of these lengths, without padding.

    There are six operations for each weight of a linear layer and each token, and those of attention, as in PaLM
    (Chowdhery et al. 2022), appendix B.
    """
    config = AutoConfig.from_pretrained(str(transformer_folder(model_folder)), trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config, trust_remote_code=False)
    model.pooler = None
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    attention = 12.0 * config.num_hidden_layers * config.hidden_size * (lengths.astype(float) ** 2).sum()
    return 6.0 * weights * lengths.sum() + attention


def matmul_peak(device: torch.device, bf16: bool, threads: int) -> float:
    """Measures the operations per second of a large matrix product; on CPUs, per CPU-second."""
    torch.set_num_threads(threads)
    size = 8192 if device.type == "cuda" else 2048
    factor = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    stopwatch = Stopwatch(device)
    factor @ factor
    stopwatch.start()
    for _ in range(10):
        factor @ factor
    stopwatch.stop()
    return 10 * 2 * size**3 / stopwatch.figures["seconds" if device.type == "cuda" else "cpu_seconds"]
