"""Pictures of a run and of a search: python jobs/pictures.py --run DIR --search DIR --output_dir DIR; see -h."""

import sys

from rqa_ray.command_line import parse, user_errors
from rqa_ray.reports.pictures import pictures
from rqa_ray.settings import PicturesSettings


def main() -> None:
    with user_errors():
        for file in pictures(parse(PicturesSettings, "pictures.py", sys.argv[1:])):
            print(f"written: {file}")


if __name__ == "__main__":
    main()
