"""MedQuAD's XML to the files of a training run: python jobs/medquad.py --source FOLDER --output_dir DIR; see -h."""

import sys

from rqa_ray.command_line import parse, user_errors
from rqa_ray.data.medquad import medquad
from rqa_ray.settings import MedquadSettings


def main() -> None:
    with user_errors():
        settings = parse(MedquadSettings, "medquad.py", sys.argv[1:])
        print("\n".join(medquad(settings)))
        print(f"written: {settings.output_dir}")


if __name__ == "__main__":
    main()
