r"""Ranks all passages for questions whose passages are known, and measures how good the ranking is.

usage:   python jobs/evaluate.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/evaluate.py --model output/run --document_path documents.jsonl \
             --eval_data_path test.jsonl --output_dir output/evaluation
"""

import sys

from rqa_ray.corpus_settings import EvaluateSettings
from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        with quick_imports():
            from rqa_ray.command_line import parse

            settings = parse(EvaluateSettings, sys.argv[1:], __doc__)
            # Ray is imported after the arguments are known to be right
            from rqa_ray.evaluation.evaluate import evaluate
            from rqa_ray.reports.evaluation_page import write_evaluation_report

        with result_output(settings.json) as show:
            show(evaluate(settings, write_evaluation_report))


if __name__ == "__main__":
    main()
