"""Finds passages for a question, or for each question that you type. Needs no Ray.

usage:   python jobs/search.py [CONFIG.json] [--FLAG VALUE ...] ["QUESTION"]
example: python jobs/search.py --model output/run --document_path documents.jsonl "Who pays?"
"""

import os
import sys

from rqa_ray.corpus_settings import SearchSettings
from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def main() -> None:
    with user_errors():
        with quick_imports():
            from rqa_ray.command_line import parse

            settings = parse(SearchSettings, sys.argv[1:], __doc__, free_word="question")
            from rqa_ray.corpus.search import prompt, search

        if settings.question is None and not settings.json:
            prompt(settings)
            return
        with result_output(settings.json) as show:
            show(search(settings))


if __name__ == "__main__":
    main()
