"""Trains with many values of learning rate, batch size or other settings, and keeps the best model.

usage:   python jobs/tune.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/tune.py jobs/demo.json --output_dir output/search --tune_batch_size 16 32 64
"""

import sys

from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        with quick_imports():
            from rqa_ray.tuning.options import parse_search

            search = parse_search(sys.argv[1:], __doc__)
            from rqa_ray.tuning.tune import tune  # Ray is imported after the arguments are known to be right

        with result_output(search.job.settings.json) as show:
            show(tune(search))


if __name__ == "__main__":
    main()
