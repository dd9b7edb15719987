r"""Embeds all passages of a corpus, for jobs/evaluate.py and jobs/search.py.

usage:   python jobs/embed.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/embed.py --model output/run --document_path documents.jsonl \
             --output_dir embeddings
"""

import sys

from rqa_ray.corpus_settings import EmbedSettings
from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        with quick_imports():
            from rqa_ray.command_line import parse

            settings = parse(EmbedSettings, sys.argv[1:], __doc__)
            from rqa_ray.corpus.embed import embed  # Ray is imported after the arguments are known to be right

        with result_output(settings.json) as show:
            show(embed(settings))


if __name__ == "__main__":
    main()
