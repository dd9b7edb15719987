"""Fine-tunes a retriever on questions and the passages that answer them, and measures the gain.

usage:   python jobs/train.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/train.py jobs/demo.json --output_dir output/demo
"""

import sys

from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():  # Ctrl-C before or after training, which has a handler of its own
        with quick_imports():
            from rqa_ray.training.job import parse_job

            job = parse_job(sys.argv[1:], __doc__)
            from rqa_ray.training.train import train  # Ray is imported after the arguments are known to be right

        with result_output(job.settings.json) as show:
            show(train(job))


if __name__ == "__main__":
    main()
