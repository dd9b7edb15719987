"""Measures the speed of a GPU in one process and within minutes, on texts and weights that are random.

The measurements need torch, transformers and sentence-transformers, and neither Ray nor a network. Each measurement is
written to the output file when it ends, so a machine that is taken away costs the measurement in hand alone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import monotonic

import numpy as np
import torch
from transformers import BertTokenizerFast

from rqa_ray.benchmarks import contenders
from rqa_ray.benchmarks.contenders import OWN, Contender, Stopwatch, Workload
from rqa_ray.benchmarks.limit import PlainLoop
from rqa_ray.benchmarks.measure import matmul_peak, measure, training_flops
from rqa_ray.benchmarks.processes import Figures
from rqa_ray.benchmarks.random_model import resolve
from rqa_ray.benchmarks.settings import BenchmarkSettings
from rqa_ray.benchmarks.train import write_report
from rqa_ray.fields import BATCHES, MEASUREMENT, MODEL, at_least
from rqa_ray.retriever.embedder import TOKENS_PER_BATCH, Embedder
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.tokenizer import TextTokenizer

# Words of a text: the medians of MedQuAD, and spreads that give its mean of 275 tokens a pair.
QUESTION_WORDS, PASSAGE_WORDS = (9, 0.3), (170, 0.9)  # median and sigma of a log-normal distribution
MOST_KERNELS = 20


@dataclass(kw_only=True)
class GpuBenchmark(BenchmarkSettings):
    """Measures training steps, encoding and kernels on a GPU, in one process, within minutes.

    usage:   python jobs/benchmark.py gpu [CONFIG.json] [--FLAG VALUE ...]
    example: python jobs/benchmark.py gpu --output gpu.json
    """

    model_name_or_path: str = MODEL.setting("bert:base", "TYPE:SIZE, a model with random weights.")
    batch_size: int = BATCHES.setting(2048, "Pairs in a batch that needs gradient caching.", at_least(2))
    small_batch_size: int = BATCHES.setting(256, "Pairs in a batch that needs no gradient caching.", at_least(2))
    num_passages: int = MEASUREMENT.setting(20_000, "Passages that are encoded.", at_least(1))
    steps: int = MEASUREMENT.setting(2, "Timed steps of each training.", at_least(1))
    minutes: float = MEASUREMENT.setting(7.0, "Start no measurement after this time.", at_least(0))


def run(settings: GpuBenchmark) -> str:
    """Makes the measurements in the order of their weight, writes all figures, and returns a table.

    Raises:
        InputError: there is no such model type or size.
    """
    began = monotonic()
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        workload = random_workload(settings, scratch)
        for name, measurement in measurements(workload, settings).items():
            if monotonic() - began > 60 * settings.minutes:
                print(f"{name}: not measured, {settings.minutes:g} minutes are over", file=sys.stderr)
                continue
            print(f"{monotonic() - began:.0f} s: {name}", file=sys.stderr)
            try:
                results[name] = measurement()
            except (torch.OutOfMemoryError, ImportError) as error:
                print(f"{name}: not measured ({type(error).__name__})", file=sys.stderr)
                continue
            finally:
                torch.cuda.empty_cache()
            write_report(settings.output, asdict(settings), {}, results)
    return table(results)


def random_workload(settings: GpuBenchmark, scratch: str) -> Workload:
    """Makes a model with random weights, and pairs of random words for the largest batch and all its steps."""
    words = [f"w{number}" for number in range(30_000)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizerFast(
        vocab={token: place for place, token in enumerate(vocabulary)}, model_max_length=settings.max_seq_length
    )
    folder = resolve(settings.model_name_or_path, scratch, tokenizer)
    generator = np.random.default_rng(0)
    number = max((settings.steps + 1) * settings.batch_size, settings.num_passages)

    def texts(median: int, sigma: float) -> list[str]:
        lengths = np.clip(generator.lognormal(np.log(median), sigma, number), 1, settings.max_seq_length)
        return [" ".join(generator.choice(words, int(length))) for length in lengths]

    questions, passages = texts(*QUESTION_WORDS), texts(*PASSAGE_WORDS)
    ours = TextTokenizer.load(ModelSpec(folder, read_settings(folder, max_seq_length=settings.max_seq_length)))
    return Workload(
        questions,
        passages,
        ours.questions(questions),
        ours.passages(passages),
        np.arange(number),
        folder,
        settings.max_seq_length,
        settings.batch_size,
        dropout=0.1,
        bf16=True,
    )


def measurements(workload: Workload, settings: GpuBenchmark) -> dict[str, Callable[[], Figures]]:
    """Returns the measurements by name, those that matter most first."""
    large, small = replace(workload, gradient_cache="true"), replace(workload, batch_size=settings.small_batch_size)
    peers = contenders.peers(workload.device)
    cached = peers["cached"]
    best = next(iter(cached))
    of_large, of_small = f"batch {large.batch_size}", f"batch {small.batch_size}"

    def training(of: Workload, contender: Contender) -> Callable[[], Figures]:
        return partial(trained, of, settings.steps, contender)

    return {
        "matrix products": partial(peak, workload.device),
        f"{OWN}, {of_large}": training(large, contenders.own),
        f"{best}, {of_large}": training(large, cached[best]),
        f"{OWN}, {of_small}": training(small, contenders.own),
        f"sentence-transformers, {of_small}": training(small, peers["sentence-transformers"]["sentence-transformers"]),
        f"{OWN}, encoding": partial(encoded, workload, settings.num_passages, embed_own),
        "sentence-transformers, encoding": partial(encoded, workload, settings.num_passages, embed_peer),
        "bare forward pass, encoding": partial(encoded, workload, settings.num_passages, embed_bare),
        f"{OWN} compiled, {of_large}": training(replace(large, torch_compile=True), contenders.own),
        f"{OWN}, kernels of a step, {of_small}": partial(kernels, small),
        **{f"{name}, {of_large}": training(large, contender) for name, contender in cached.items() if name != best},
    }


def peak(device: torch.device) -> Figures:
    """Returns the floating-point operations per second of a large matrix product in bf16."""
    return {"flops_per_second": matmul_peak(device, True, torch.get_num_threads())}


def trained(workload: Workload, steps: int, contender: Contender) -> Figures:
    """Returns the figures of some training steps."""
    return measure(workload, 0, steps, torch.get_num_threads(), time.time(), contender)


def encoded(workload: Workload, number: int, embed: Callable[[Workload, int, Stopwatch], None]) -> Figures:
    """Returns the rate at which the first passages are encoded."""
    stopwatch = Stopwatch(workload.device)
    embed(workload, number, stopwatch)
    lengths = np.array([len(row) for row in workload.passage_tokens[:number]])
    flops = training_flops(workload.model_folder, lengths) / 3  # the forward pass alone
    figures = stopwatch.figures
    busy = figures["seconds" if workload.device.type == "cuda" else "cpu_seconds"]  # as the peak is measured
    return figures | {"passages_per_second": number / figures["seconds"], "useful_flops_per_second": flops / busy}


def embed_own(workload: Workload, number: int, stopwatch: Stopwatch) -> None:
    """Encodes texts with this project's embedder, in bf16."""
    settings = read_settings(workload.model_folder, max_seq_length=workload.max_seq_length)
    embedder = Embedder.load(ModelSpec(workload.model_folder, settings), workload.device, bf16=True)
    embedder.passages(workload.passages[:8])
    stopwatch.start()
    embedder.passages(workload.passages[:number]).float().cpu()
    stopwatch.stop()


def embed_peer(workload: Workload, number: int, stopwatch: Stopwatch) -> None:
    """Encodes texts with sentence-transformers, in bf16 and large batches."""
    from sentence_transformers import SentenceTransformer

    options = {"dtype": torch.bfloat16}
    model = SentenceTransformer(workload.model_folder, device=workload.device.type, model_kwargs=options)
    model.max_seq_length = workload.max_seq_length
    model.encode(workload.passages[:8])
    stopwatch.start()
    model.encode(workload.passages[:number], batch_size=256)
    stopwatch.stop()


def embed_bare(workload: Workload, number: int, stopwatch: Stopwatch) -> None:
    """Computes the forward passes on token rows that are ready, sorted and without padding: the limit of encoding."""
    plain = PlainLoop(workload.model_folder, 0.0, True, workload.device)
    plain.model.eval().to(torch.bfloat16)
    most = TOKENS_PER_BATCH[workload.device.type]
    rows = sorted(workload.passage_tokens[:number], key=len)
    places = np.cumsum([len(row) for row in rows]) // most
    groups = np.split(np.arange(number), np.flatnonzero(np.diff(places)) + 1)
    with torch.inference_mode():
        plain.packed(rows[:8])
        stopwatch.start()
        for group in groups:
            plain.packed([rows[place] for place in group])
        stopwatch.stop()


class _Profiler(Stopwatch):
    """A stopwatch that also records the kernels."""

    def start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=activities)
        self.profile.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        self.profile.stop()


def kernels(workload: Workload) -> Figures:
    """Returns the seconds that each kernel takes in one training step of this project, the largest first."""
    stopwatch = _Profiler(workload.device)
    contenders.own(workload, workload.batches(0), 1, stopwatch)
    on_gpu = workload.device.type == "cuda"
    seconds: Figures = {}
    for event in stopwatch.profile.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[event.key[:80]] = seconds.get(event.key[:80], 0.0) + microseconds / 1e6
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:MOST_KERNELS]
    return {"the whole step": stopwatch.figures["seconds"], "all kernels": sum(seconds.values()), **dict(largest)}


def table(results: dict[str, Figures]) -> str:
    """Returns a Markdown table of the rates, and a table of the kernels."""
    most = results.get("matrix products", {}).get("flops_per_second")
    lines = ["| | pairs or passages/s | share of matmul peak | peak memory, GB |", "|---|---|---|---|"]
    of_kernels = ["| kernel | seconds of a step |", "|---|---|"]
    for name, figures in results.items():
        rate = figures.get("pairs_per_second", figures.get("passages_per_second"))
        if rate is not None:
            share = f"{figures['useful_flops_per_second'] / most:.0%}" if most else ""
            lines.append(f"| {name} | {rate:,.1f} | {share} | {figures['peak_memory_gb']:.1f} |")
        elif name != "matrix products":
            of_kernels += [f"| {kernel} | {seconds:.3f} |" for kernel, seconds in figures.items()]
    said = [f"matrix products: {most / 1e12:,.2f} TFLOP/s in bf16", ""] if most else []
    return "\n".join([*said, *lines, "", *pairs_to_compile_for(results), *of_kernels])


def pairs_to_compile_for(results: dict[str, Figures]) -> list[str]:
    """Returns lines that say after how many pairs `--torch_compile` has paid for the time that it takes."""
    lines = []
    for name, compiled in results.items():
        eager = results.get(name.replace(" compiled", ""), compiled)
        if eager is compiled:
            continue
        more = compiled["seconds_to_second_step"] - eager["seconds_to_second_step"]
        saved = 1 / eager["pairs_per_second"] - 1 / compiled["pairs_per_second"]
        pays = f"it pays after {max(more, 0) / saved:,.0f} pairs" if saved > 0 else "no number of pairs pays for it"
        lines += [f"{name}: to compile takes {more:.0f} s, and saves {1e3 * saved:.3f} ms a pair; {pays}", ""]
    return lines
