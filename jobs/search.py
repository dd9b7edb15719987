"""Passages for a question: python jobs/search.py --model DIR --document_path FILE "question"; see -h. Needs no Ray."""

import argparse
import os

from rqa_ray.command_line import user_errors
from rqa_ray.errors import InputError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def parse() -> argparse.Namespace:
    from rqa_ray.corpus.options import add_corpus_flags, add_model_flags

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help="leave it out for a prompt")
    add_model_flags(parser)
    add_corpus_flags(parser, required=False)
    parser.add_argument("--embeddings_path", help="what jobs/embed.py wrote; default: embeddings/ in the model folder")
    parser.add_argument("--top_k", type=int, default=5, help="passages shown")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, with whole documents")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with user_errors():
        if args.top_k < 1:
            raise InputError(f"--top_k {args.top_k}: has to be at least 1")
        from rqa_ray.corpus.options import find_model
        from rqa_ray.corpus.search import Searcher, answer, prompt
        from rqa_ray.data.records import find_inputs

        files = find_inputs({"corpus": ("document_path", args.document_path)}, skip_bad=False).get("corpus")
        searcher = Searcher(find_model(args), files, args.embeddings_path, args.bf16)
        if not args.json:
            print(searcher.source)
        if args.question is None:
            prompt(searcher, args.top_k)
        else:
            answer(searcher, args.question, args.top_k, args.json)


if __name__ == "__main__":
    main()
