"""Reads the data sets of `jobs/benchmark.py quality`, each once for all recipes and seeds.

P passages of the corpus; Q questions of a split.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.mining import Wordings
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.data.demo import write_demo
from rqa_ray.data.files import find_files
from rqa_ray.data.records import good_records
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.data.schema import QARecord, question_key
from rqa_ray.data.splits import seeded_hash
from rqa_ray.data.token_tables import document_rows, make_tokenizer, question_rows, to_table, train_rows
from rqa_ray.errors import InputError
from rqa_ray.evaluation.evaluator import TOP_K
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.training.assembly import TrainingData
from rqa_ray.training.mining_pass import MiningTexts, TextsHere

BUILT_IN = "builtin"
BUILT_IN_SIZES = {"num_train": 800, "num_eval": 520, "num_test": 520}
INPUTS = {"train": "train*", "eval": "eval*", "test": "test*", "corpus": "documents*"}  # files of a folder
MINED_DEPTH = 100  # candidates of a question from BM25

Values = dict[str, dict[str, np.ndarray]]  # (Q,) by split and by the names of HEADLINES


@dataclass
class DataSet:
    """One data set: its texts, its token rows, and BM25's index."""

    records: list[QARecord]  # training
    texts: list[str]  # (P,)
    tokenized: TrainingData
    asked: dict[str, AskedQuestions]  # by split
    clusters: dict[str, np.ndarray]  # (Q,) by split
    bm25: Bm25

    @property
    def passage_ids(self) -> np.ndarray:
        return self.tokenized.corpus.passage_ids

    @property
    def digest(self) -> str:
        """A fingerprint of all questions, their golds and the corpus."""
        asked = [(one.questions, [ids.tolist() for ids in one.gold_ids]) for one in self.asked.values()]
        parts = json.dumps([self.pairs, asked]).encode(), self.passage_ids.tobytes()
        return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The questions and gold passages to train on."""
        return [(asked, gold.fmt_content) for one in self.records for asked in one.questions for gold in one.gold_docs]

    def values(self, positions: dict[str, np.ndarray]) -> Values:
        """Returns the metrics of each question from rankings (Q, K) of positions by split."""
        found = {
            split: question_metrics(self.passage_ids[ranked], self.asked[split].gold_ids)
            for split, ranked in positions.items()
        }
        return {split: {name: of[LABELS[name]] for name in HEADLINES} for split, of in found.items()}


def read_data_set(name: str, model: ModelSpec) -> DataSet:
    """Reads `builtin`, or a folder with files train*, eval*, test* and documents*.

    `:300` behind a name keeps so many training questions, chosen by a hash of each record.

    Raises:
        InputError: a file is missing or wrong, or the number is none.
    """
    folder, _, size = name.partition(":")
    if size and not size.isdecimal():
        raise InputError(f"--data {name}: {size} is no number of training questions")
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        if folder == BUILT_IN:
            write_demo(Path(scratch), **BUILT_IN_SIZES)
        place = scratch if folder == BUILT_IN else folder
        files = {part: find_files([f"{place}/{pattern}"], "data") for part, pattern in INPUTS.items()}
        splits = {part: list(good_records(files[part], "questions")) for part in ("train", "eval", "test")}
        documents = list(good_records(files["corpus"], "documents"))
    splits["train"] = _some(splits["train"], int(size)) if size else splits["train"]
    tokenizer = make_tokenizer(model)
    tables = {"train": _table("train", train_rows(list(enumerate(splits["train"])), tokenizer, set()))}
    for split in ("eval", "test"):
        tables[split] = _table("questions", question_rows(list(enumerate(splits[split])), tokenizer))
    tables["corpus"] = _table("corpus", document_rows(list(enumerate(documents)), tokenizer))
    corpus, texts = Corpus.from_tables([tables["corpus"]]), Documents([tables["corpus"]]).texts()
    bm25, asked = Bm25(texts), {split: AskedQuestions([tables[split]]) for split in ("eval", "test")}
    tokenized = TrainingData(
        TrainingRows.from_tables([tables["train"]]),
        corpus,
        {split: Questions.from_tables([tables[split]]) for split in asked},
        _mining_texts(splits["train"], tables["train"], corpus, TextsHere(bm25, texts), asked["eval"].questions),
        {split: bm25.rank(one.questions, TOP_K)[1] for split, one in asked.items()},
    )
    clusters = {split: questions.clusters.labels for split, questions in asked.items()}
    return DataSet(splits["train"], texts, tokenized, asked, clusters, bm25)


def _some(records: Sequence[QARecord], size: int) -> list[QARecord]:
    """Returns records with about `size` questions; a smaller choice is a part of a larger one."""
    chosen, number = set(), 0
    for place in sorted(range(len(records)), key=lambda place: seeded_hash(str(place), 0)):
        if number < size:
            chosen.add(place)
            number += len(records[place].questions)
    return [record for place, record in enumerate(records) if place in chosen]


def _table(kind: str, rows: list[dict]) -> pa.Table:
    return to_table([row | {"file": 0} for row in rows], kind)


def _mining_texts(
    records: list[QARecord], table: pa.Table, corpus: Corpus, texts: TextsHere, of_eval: list[str]
) -> MiningTexts:
    wordings = Wordings.of(table["question_key"].to_numpy(), table["passage_id"].to_numpy())
    questions = {question_key(text, record.instruction): text for record in records for text in record.questions}
    golds = {gold.passage_id: gold.fmt_content for record in records for gold in record.gold_docs}
    return MiningTexts.of(wordings, corpus.passage_ids, questions, golds, texts, MINED_DEPTH, of_eval)


def without_near_duplicates(texts: MiningTexts) -> MiningTexts:
    """Returns the same texts, of which no two look alike: mining then filters golds by their ids alone."""
    own = texts.signatures
    return replace(texts, signatures=Signatures(np.arange(len(own.exact)), np.zeros_like(own.counts), own.minima))
