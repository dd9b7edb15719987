"""Measures speed and memory against the peers: python jobs/benchmark.py train|data --output FILE; -h lists flags."""

import argparse

from rqa_ray.command_line import exit_with_message
from rqa_ray.errors import InputError


def main() -> None:
    from rqa_ray.benchmarks import data, train

    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    for benchmark, text in ((train, "a training step"), (data, "files to token rows, and the memory of streaming")):
        part = what.add_parser(
            benchmark.__name__.rsplit(".")[-1], help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        benchmark.add_arguments(part)
        part.set_defaults(run=benchmark.run)
    args = parser.parse_args()
    try:
        print(args.run(args))
    except InputError as error:
        exit_with_message(error)
    print(f"all figures: {args.output}")


if __name__ == "__main__":
    main()
