"""Passages to embeddings: python jobs/embed.py --model DIR --document_path FILE ... --output_dir DIR; see -h."""

import sys

from rqa_ray.command_line import parse, user_errors
from rqa_ray.settings import EmbedSettings
from rqa_ray.texts import command


def main() -> None:
    with user_errors("stopped; the same command goes on"):
        settings = parse(EmbedSettings, "embed.py", sys.argv[1:])
        from rqa_ray.corpus.embed import embed  # Ray is imported after the arguments are known to be right

        for line in embed(settings):
            print(f"written: {line}")
        model = settings.embedding_model_name_or_path
        words = ["--model", model, "--embeddings_path", settings.output_dir, "a question"]
        print(f"next:\n  {command('jobs/search.py', *words)}")


if __name__ == "__main__":
    main()
