"""Makes train, eval, test and corpus files of MedQuAD, a public data set of health questions.

usage:   python jobs/medquad.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/medquad.py --source output/MedQuAD --output_dir output/medquad
"""

import sys

from rqa_ray.corpus_settings import MedquadSettings
from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.command_line import parse
        from rqa_ray.data.medquad import medquad

        settings = parse(MedquadSettings, sys.argv[1:], __doc__)
        with result_output(settings.json) as show:
            show(medquad(settings))


if __name__ == "__main__":
    main()
