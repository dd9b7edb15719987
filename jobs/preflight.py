"""Says in seconds whether jobs/train.py could run with the same words; trains nothing.

usage:   python jobs/preflight.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/preflight.py jobs/demo.json --num_workers 4
"""

import sys

from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        with quick_imports():
            from rqa_ray.training.job import parse_job

            job = parse_job(sys.argv[1:], __doc__)
            # Ray is imported after the arguments are known to be right
            from rqa_ray.training.preflight import preflight

        with result_output(job.settings.json) as show:
            show(preflight(job))


if __name__ == "__main__":
    main()
