"""Fine-tunes a retriever: python jobs/train.py [CONFIG.json] [--FLAG VALUE ...]; -h lists all flags."""

import sys

from rqa_ray.command_line import exit_with_message, parse_job
from rqa_ray.errors import InputError


def main() -> None:
    try:
        job = parse_job(sys.argv[1:])
        from rqa_ray.training.run import train  # Ray is imported after the arguments are known to be right

        train(job)
    except InputError as error:
        exit_with_message(error)
    except KeyboardInterrupt:  # before or after training, which has a handler of its own
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
