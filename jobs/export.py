r"""Writes a model for ONNX and OpenVINO, measures what this costs and gains, and uploads it to the hub.

usage:   python jobs/export.py [CONFIG.json] [--FLAG VALUE ...]
example: python jobs/export.py --model output/run --document_path documents.jsonl \
             --eval_data_path test.jsonl --output_dir output/exported
"""

import sys

from rqa_ray.corpus_settings import ExportSettings
from rqa_ray.job_output import result_output
from rqa_ray.stops import user_errors


def main() -> None:
    with user_errors():
        from rqa_ray.command_line import parse

        settings = parse(ExportSettings, sys.argv[1:], __doc__)
        from rqa_ray.export.export import export  # torch is imported after the arguments are known to be right

        with result_output(settings.json) as show:
            show(export(settings))


if __name__ == "__main__":
    main()
