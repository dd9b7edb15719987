r"""Finds hard negatives for training questions: passages that look like an answer and are none.

usage:   python jobs/mine.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/mine.py --model output/run --full_dataset_file_path documents.jsonl \
             --train_file train.jsonl --output_dir output/mined
# --audit DIR, and no other flag: mines nothing, and makes suspects.html in DIR again
"""

import sys
from dataclasses import replace
from pathlib import Path

from rqa_ray.corpus_settings import AuditSettings, MineSettings
from rqa_ray.job_output import result_output
from rqa_ray.quick_imports import quick_imports
from rqa_ray.stops import user_errors


def main() -> None:
    words = sys.argv[1:]
    with user_errors("stopped; the same command goes on"):
        with quick_imports():
            from rqa_ray.command_line import parse
            from rqa_ray.reports.suspects_page import write_suspects_page

        if any(word.partition("=")[0] == "--audit" for word in words):
            audit = parse(AuditSettings, words, __doc__)
            with result_output(audit.json) as show:
                show(write_suspects_page(Path(audit.audit)))
        else:
            settings = parse(MineSettings, words, __doc__)
            with quick_imports():  # Ray is imported after the arguments are known to be right
                from rqa_ray.corpus.mine import mine
                from rqa_ray.evaluation.hybrid_weight import weigh

            with result_output(settings.json) as show:
                result = mine(settings, weigh)
                page = write_suspects_page(Path(settings.output_dir))
                show(replace(result, files=result.files + page.files, report=page.report))
                print(page.describe())


if __name__ == "__main__":
    main()
