"""Passages to embeddings: python jobs/embed.py --model DIR --document_path FILE ... --output_dir DIR; see -h."""

import argparse

from rqa_ray.command_line import user_errors
from rqa_ray.corpus.options import add_corpus_flags, add_model_flags, add_worker_flags, find_model
from rqa_ray.data.records import find_inputs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    add_corpus_flags(parser)
    add_worker_flags(parser)
    parser.add_argument("--output_dir", required=True, help="folder or URI; run again, it goes on where it stopped")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32", help="of the saved numbers")
    parser.add_argument("--index", action="store_true", help="write a FAISS index too (exact, inner product)")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace embeddings of something else")
    return parser.parse_args()


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        args = parse()
        files = find_inputs({"corpus": ("document_path", args.document_path)}, skip_bad=False)["corpus"]
        model = find_model(args)
        from rqa_ray.corpus.embed import run  # Ray is imported after the arguments are known to be right

        run(args, model, files)


if __name__ == "__main__":
    main()
