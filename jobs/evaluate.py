"""Recall on a full corpus: python jobs/evaluate.py [CONFIG.json] --embedding_model_name_or_path DIR ...; see -h."""

import sys

from rqa_ray.command_line import parse, user_errors
from rqa_ray.settings import EvaluateSettings


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        settings = parse(EvaluateSettings, "evaluate.py", sys.argv[1:])
        from rqa_ray.evaluation.evaluate import evaluate  # Ray is imported after the arguments are known to be right

        print(evaluate(settings).describe())


if __name__ == "__main__":
    main()
