"""Recall on a full corpus: python jobs/evaluate.py [CONFIG.json] --embedding_model_name_or_path DIR ...; see -h."""

import argparse
import sys

from rqa_ray.command_line import expand_config, user_errors
from rqa_ray.corpus.options import RETRIEVERS, add_corpus_flags, add_model_flags, add_worker_flags, find_model
from rqa_ray.data.records import find_inputs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    add_corpus_flags(parser)
    parser.add_argument("--eval_data_path", nargs="+", required=True, help="questions with their gold passages")
    add_worker_flags(parser)
    parser.add_argument("--output_dir", required=True, help="folder; run again, it goes on where it stopped")
    parser.add_argument("--embeddings_path", help="what jobs/embed.py wrote, or where embeddings go (folder, URI)")
    parser.add_argument("--retriever_type", choices=RETRIEVERS, default="dense", help="hybrid: dense and bm25 fused")
    parser.add_argument("--weight_data_path", nargs="+", help="other questions, which choose the weight of a hybrid")
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="RETRIEVER|DIR",
        help="put beside it: retrievers (all of them where none is named), or output folders of earlier runs",
    )
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace results of other arguments")
    switches = {action.dest for action in parser._actions if action.nargs == 0}
    args = parser.parse_args(expand_config(sys.argv[1:], switches))
    if args.compare == []:
        args.compare = [*RETRIEVERS]
    return args


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        args = parse()
        flags = {"corpus": "document_path", "test": "eval_data_path", "weight": "weight_data_path"}
        inputs = find_inputs({name: (flag, getattr(args, flag)) for name, flag in flags.items()}, skip_bad=False)
        model = find_model(args)
        from rqa_ray.evaluation.evaluate import run  # Ray is imported after the arguments are known to be right

        run(args, model, inputs)


if __name__ == "__main__":
    main()
