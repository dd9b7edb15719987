r"""Checks the files of a training run, says what is in them, and writes them as Parquet.

usage:   python jobs/prepare.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/prepare.py --train_file train.jsonl --eval_file eval.jsonl \
             --full_dataset_file_path documents.jsonl --output_dir prepared
"""

import sys

from rqa_ray.corpus_settings import PrepareSettings
from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.command_line import parse

        settings = parse(PrepareSettings, sys.argv[1:], __doc__)
        from rqa_ray.data.prepare import prepare  # Ray is imported after the arguments are known to be right

        with result_output(settings.json) as show:
            show(prepare(settings))


if __name__ == "__main__":
    main()
