r"""Embeds all passages of a corpus, for jobs/evaluate.py and jobs/search.py.

usage:   python jobs/embed.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/embed.py --model output/run --document_path documents.jsonl \
             --output_dir embeddings
"""

import sys

from rqa_ray.corpus_settings import EmbedSettings
from rqa_ray.stops import user_errors
from rqa_ray.texts import command


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        from rqa_ray.command_line import parse

        settings = parse(EmbedSettings, sys.argv[1:], __doc__)
        from rqa_ray.corpus.embed import embed  # Ray is imported after the arguments are known to be right

        for line in embed(settings):
            print(f"written: {line}")
        model = settings.embedding_model_name_or_path
        words = ["--model", model, "--embeddings_path", settings.output_dir, "a question"]
        print(f"next:\n  {command('jobs/search.py', *words)}")


if __name__ == "__main__":
    main()
