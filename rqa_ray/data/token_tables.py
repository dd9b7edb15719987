"""Turns parsed records into rows of token ids, in the columns that `rows.py` reads: one row per question and gold.

A training row names its passages by id. The first row of a task that names a passage also brings its tokens.

This file does not import Ray; the tasks of `readers.py` and `streaming.py` call it.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.schema import Document, QARecord, question_key, text_hash
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.texts import as_utf8

TOKENS = pa.list_(pa.int32())
MAX_GOLDS = 2**32  # of a question: the rows of a line come in the order of its questions
Records = list[tuple[int, QARecord]]  # line and record

# Where a row comes from, and the counts of its file (in one row of the file, 0 in the others).
_COMMON = [
    ("file", pa.int32()),
    ("line", pa.int64()),
    ("item", pa.int64()),
    ("problem", pa.string()),
    ("num_texts", pa.int32()),
    ("num_truncated", pa.int32()),
    ("num_empty_questions", pa.int32()),
    ("skipped", pa.string()),  # a Skipped as JSON
]
_QUESTION = [
    *_COMMON,
    ("question_item", pa.int32()),
    ("question_key", pa.int64()),
    ("question_tokens", TOKENS),
    ("passage_id", pa.int64()),
    ("has_chat_history", pa.bool_()),
]
SCHEMAS = {
    "train": pa.schema(
        [
            *_QUESTION,
            ("source_key", pa.int64()),  # `schema.QARecord.source_key`
            ("instructions", pa.string()),  # `instructions.Found` as JSON, in one row of the file, like the counts
            ("hard_negative_ids", pa.list_(pa.int64())),
            ("hard_negative_scores", pa.list_(pa.float32())),  # scores of a teacher; null if there are none
            ("gold_score", pa.float32()),  # score of the same teacher; null if there is none
            # The passages that no earlier row of the task has named, each once.
            ("new_passage_ids", pa.list_(pa.int64())),
            ("new_passage_hashes", pa.list_(pa.int64())),  # hashes of the embedded texts
            ("new_passage_tokens", pa.list_(TOKENS)),
        ]
    ),
    "questions": pa.schema(
        [
            *_QUESTION,
            ("gold_grade", pa.float64()),
            *((name, pa.string()) for name in ("question", "instruction", "gold_doc")),
        ]
    ),
    "corpus": pa.schema(
        [
            *_COMMON,
            ("passage_id", pa.int64()),
            ("text_hash", pa.int64()),
            ("tokens", TOKENS),
            ("document", pa.string()),
        ]
    ),
}


def to_table(rows: list[dict[str, Any]], kind: str) -> pa.Table:
    """Makes a block of rows; keeps the columns of the schema and fills missing ones with null."""
    schema = SCHEMAS[kind]
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names}
    )


@functools.lru_cache(maxsize=1)
def _cached_tokenizer(spec: ModelSpec) -> TextTokenizer:
    return TextTokenizer.load(spec)


def make_tokenizer(spec: ModelSpec) -> TextTokenizer:
    """Returns the tokenizer of a model; each process keeps the last one."""
    return _cached_tokenizer(replace(spec, copy=None))


def with_tokenizer(spec: ModelSpec) -> ModelSpec:
    """Returns the spec with its tokenizer: a process that unpickles it need not import torch, as one that loads it.

    A tokenizer with code of its own is not added, because its code can only be imported where it was loaded.
    """
    return spec if spec.trust_remote_code else replace(spec, tokenizer=pickle.dumps(make_tokenizer(spec).tokenizer))


Named = set[tuple[int, int]]  # passage ids and text hashes


def train_rows(records: Records, tokenizer: TextTokenizer, named: Named) -> list[dict[str, Any]]:
    """Returns rows of `train`. `named` are the passages that earlier rows of the task have brought.

    The function adds to it.
    """
    questions = _question_tokens(records, tokenizer)
    new: list[dict[tuple[int, int], str]] = []  # for each record, the texts of the passages that it names first
    for _, record in records:
        texts = {(doc.passage_id, text_hash(doc.fmt_content)): doc.fmt_content for doc in record.passages}
        new.append({key: text for key, text in texts.items() if key not in named} if record.questions else {})
        named.update(new[-1])
    passages = _passage_tokens(tokenizer, [text for brought in new for text in brought.values()])
    rows = []
    for (line, record), brought in zip(records, new, strict=True):
        columns: dict[str, Any] = {
            "source_key": record.source_key,
            "hard_negative_ids": [document.passage_id for document in record.hard_neg_docs],
            "hard_negative_scores": record.hard_neg_scores or [None] * len(record.hard_neg_docs),
            "new_passage_ids": [number for number, _ in brought],
            "new_passage_hashes": [digest for _, digest in brought],
            "new_passage_tokens": [passages[text] for text in brought.values()],
        }
        for row in _pairs(line, record, questions):
            rows.append(row | columns)
            columns |= {name: [] for name in columns if name.startswith("new_")}
    return rows


def question_rows(records: Records, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Returns rows of `questions`, with the question and its gold document as people read them."""
    questions = _question_tokens(records, tokenizer)
    rows = [row for line, record in records for row in _pairs(line, record, questions)]
    return [row | {"gold_doc": json.dumps(row["gold"].to_dict())} for row in rows]


Asked = tuple[str | None, str]  # instruction and question


def _question_tokens(records: Records, tokenizer: TextTokenizer) -> dict[Asked, np.ndarray]:
    """Returns the token rows of all questions; a question that occurs often is tokenized once."""
    asked = list(dict.fromkeys((record.instruction, text) for _, record in records for text in record.questions))
    rows = tokenizer.questions([text for _, text in asked], [instruction for instruction, _ in asked])
    return dict(zip(asked, rows, strict=True))


def _pairs(line: int, record: QARecord, questions: dict[Asked, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yields one row for each question and gold passage of a record."""
    scores = record.gold_scores or [None] * len(record.gold_docs)
    golds = [*zip(record.gold_docs, scores, record.grades, strict=True)]
    for number, question in enumerate(record.questions):
        question_item = record.first_question + number
        for gold_number, (gold, gold_score, gold_grade) in enumerate(golds):
            yield {
                "line": line,
                "item": question_item * MAX_GOLDS + gold_number,
                "question_item": question_item,
                "question": as_utf8(question),
                "instruction": record.instruction,
                "question_key": question_key(question, record.instruction),
                "question_tokens": questions[record.instruction, question],
                "passage_id": gold.passage_id,
                "gold_score": gold_score,
                "gold_grade": gold_grade,
                "has_chat_history": record.has_chat_history,
                "gold": gold,
            }


def document_rows(records: list[tuple[int, Document]], tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Returns rows of `corpus`."""
    passages = _passage_tokens(tokenizer, [document.fmt_content for _, document in records])
    return [
        {
            "line": line,
            "item": 0,
            "passage_id": document.passage_id,
            "text_hash": text_hash(document.fmt_content),
            "tokens": passages[document.fmt_content],
            "document": json.dumps(document.to_dict()),
        }
        for line, document in records
    ]


def _passage_tokens(tokenizer: TextTokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Returns the token rows of passages by text; a text that occurs often is tokenized once."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, tokenizer.passages(distinct), strict=True))
