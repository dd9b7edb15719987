"""Searches learning rate, batch size and more: python jobs/tune.py [CONFIG.json] [--FLAG VALUE ...]; -h lists all."""

import sys

from rqa_ray.command_line import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.tuning.options import parse_search

        asked = parse_search(sys.argv[1:])
        from rqa_ray.tuning.tune import search  # Ray is imported after the arguments are known to be right

        search(asked)


if __name__ == "__main__":
    main()
