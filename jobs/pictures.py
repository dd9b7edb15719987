"""Draws a run, a search, and how a record flows, as SVG files for documents in light and dark themes.

usage:   python jobs/pictures.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/pictures.py --run output/demo --search output/search --output_dir jobs/pictures
"""

import sys

from rqa_ray.corpus_settings import PicturesSettings
from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.command_line import parse
        from rqa_ray.reports.pictures import pictures

        settings = parse(PicturesSettings, sys.argv[1:], __doc__)
        with result_output(settings.json) as show:
            show(pictures(settings))


if __name__ == "__main__":
    main()
