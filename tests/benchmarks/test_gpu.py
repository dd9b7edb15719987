"""The benchmark of a GPU, in its small form on a CPU: all measurements, each written when it ends."""

import json

from rqa_ray.benchmarks import gpu, random_model
from rqa_ray.benchmarks.benchmark import benchmark, parse_benchmark

SMALL = "--model_name_or_path bert:tiny --batch_size 8 --small_batch_size 4 --num_passages 20 --max_seq_length 32"


def small(tmp_path, monkeypatch, *more: str) -> tuple[str, dict]:
    monkeypatch.setitem(random_model.SIZES, "tiny", (2, 64))
    path = tmp_path / "gpu.json"
    said = benchmark(parse_benchmark(["gpu", *SMALL.split(), "--steps", "1", "--output", str(path), *more]))
    return said.table, json.loads(path.read_text())["summary"]


def test_each_measurement_has_a_rate_and_kernels_add_up_to_a_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, bf16, threads: 1e12)
    measured = gpu.measurements
    monkeypatch.setattr(
        gpu, "measurements", lambda *of: {name: run for name, run in measured(*of).items() if "compiled" not in name}
    )
    said, summary = small(tmp_path, monkeypatch)
    trained = [name for name in summary if name.startswith(("rqa_ray, batch", "sentence-transformers"))]
    assert len(trained) >= 5 and all(f"| {name} | " in said for name in trained)
    encoded = {name: figures["passages_per_second"] for name, figures in summary.items() if "encoding" in name}
    assert len(encoded) == 3 and min(encoded.values()) > 0
    kernels = summary["rqa_ray, kernels of a step, batch 4"]
    assert 0 < max(list(kernels.values())[2:]) < kernels["all kernels"]
    # Contenders train on the same texts.
    assert len({figures["useful_tokens_per_pair"] for name, figures in summary.items() if "batch 8" in name}) == 1


def test_no_measurement_starts_when_the_time_is_over(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "measurements", lambda *of: {"first": lambda: {"a": 1.0}, "second": lambda: {"a": 2.0}})
    clock = iter([0.0, 1.0, 1.0, 61.0])
    monkeypatch.setattr(gpu, "monotonic", lambda: next(clock))
    _, summary = small(tmp_path, monkeypatch, "--minutes", "1")
    assert summary == {"first": {"a": 1.0}}
    assert "second: not measured, 1 minutes are over" in capsys.readouterr().err


def test_the_table_says_after_how_many_pairs_compiling_pays() -> None:
    rates = {"rqa_ray, batch 8": (4.0, 10.0), "rqa_ray compiled, batch 8": (64.0, 12.5), "peer": (1.0, 1.0)}
    names = "seconds_to_second_step", "pairs_per_second"
    results = {name: dict(zip(names, figures, strict=True)) for name, figures in rates.items()}
    (line, _) = gpu.pairs_to_compile_for(results)
    assert line.endswith("to compile takes 60 s, and saves 20.000 ms a pair; it pays after 3,000 pairs")
    results["rqa_ray compiled, batch 8"]["pairs_per_second"] = 9.0
    assert gpu.pairs_to_compile_for(results)[0].endswith("no number of pairs pays for it")
