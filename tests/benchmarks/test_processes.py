"""Measurements have their own process, which ends with the process that asked for the measurement."""

import subprocess
import sys

import psutil
import pytest

from rqa_ray.benchmarks.processes import in_a_process

BENCHMARK = "import sys; from rqa_ray.benchmarks.processes import in_a_process; in_a_process(exec, sys.argv[1])"
MEASURES_FOR_LONG = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"


def test_a_measurement_returns_its_result_or_raises_its_error():
    assert in_a_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        in_a_process(divmod, 7, 0)


def test_a_measurement_ends_when_the_benchmark_is_killed():
    words = [sys.executable, "-c", BENCHMARK, MEASURES_FOR_LONG]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout
        measures = psutil.Process(int(benchmark.stdout.readline()))
        benchmark.kill()
        assert not psutil.wait_procs([measures], timeout=30)[1]
