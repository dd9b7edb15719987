"""Says in seconds whether a training job could run: takes the words of jobs/train.py, trains nothing; see its -h."""

import sys

from rqa_ray.command_line import user_errors
from rqa_ray.texts import command
from rqa_ray.training.job import parse_job


def main() -> None:
    with user_errors():
        job = parse_job(sys.argv[1:])
        from rqa_ray.training.preflight import preflight  # Ray is imported after the arguments are known to be right

        print("\n".join(preflight(job)))
        print(f"all checks passed; next:\n  {command('jobs/train.py', *sys.argv[1:])}")


if __name__ == "__main__":
    main()
