"""Measures speed, memory and quality of this project and of others, and the limit of the machine.

usage:   python jobs/benchmark.py train|gpu|data|eval|mine|quality [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/benchmark.py train --train_file train.jsonl --output train.json
"""

import sys

from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.benchmarks.benchmark import benchmark, parse_benchmark

        settings = parse_benchmark(sys.argv[1:], __doc__)
        with result_output(settings.json) as show:
            show(benchmark(settings))


if __name__ == "__main__":
    main()
