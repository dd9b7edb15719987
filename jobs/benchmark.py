"""Speed and memory against the peers: python jobs/benchmark.py train|data|eval --output FILE; -h lists flags."""

import sys

from rqa_ray.command_line import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.benchmarks.benchmark import benchmark, parse_benchmark

        settings = parse_benchmark(sys.argv[1:])
        print(benchmark(settings))
        print(f"all figures: {settings.output}")


if __name__ == "__main__":
    main()
