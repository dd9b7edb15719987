"""Searches learning rate, batch size and more: python jobs/tune.py [CONFIG.json] [--FLAG VALUE ...]; -h lists all."""

import sys

from rqa_ray.command_line import user_errors
from rqa_ray.tuning.options import parse_search


def main() -> None:
    with user_errors():
        search = parse_search(sys.argv[1:])
        from rqa_ray.tuning.tune import tune  # Ray is imported after the arguments are known to be right

        tune(search)


if __name__ == "__main__":
    main()
