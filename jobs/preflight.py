"""Says in seconds whether jobs/train.py could run with the same words; trains nothing.

usage:   python jobs/preflight.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/preflight.py jobs/demo.json --num_workers 4
"""

import sys

from rqa_ray.stops import user_errors
from rqa_ray.texts import command


def main() -> None:
    with user_errors():
        from rqa_ray.training.job import parse_job

        job = parse_job(sys.argv[1:], __doc__)
        from rqa_ray.training.preflight import preflight  # Ray is imported after the arguments are known to be right

        print("\n".join(preflight(job)))
        print(f"all checks passed; next:\n  {command('jobs/train.py', *sys.argv[1:])}")


if __name__ == "__main__":
    main()
