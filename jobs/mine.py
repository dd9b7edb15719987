r"""Finds hard negatives for training questions: passages that look like an answer and are none.

usage:   python jobs/mine.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/mine.py --model output/run --full_dataset_file_path documents.jsonl \
             --train_file train.jsonl --output_dir output/mined
"""

import sys

from rqa_ray.corpus_settings import MineSettings
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        from rqa_ray.command_line import parse

        settings = parse(MineSettings, sys.argv[1:], __doc__)
        from rqa_ray.corpus.mine import mine  # Ray is imported after the arguments are known to be right

        print(mine(settings).describe())


if __name__ == "__main__":
    main()
