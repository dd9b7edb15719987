"""Parsed records to rows of token ids, in the columns that `rows.py` reads: one row per question and gold passage.

Knows no Ray: tasks of `readers.py` and `streaming.py` call it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.schema import Document, QARecord, passage_id, question_key
from rqa_ray.retriever.encoder_settings import EncoderSettings
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.texts import as_utf8

TOKENS = pa.list_(pa.int32())

# Where a row comes from, and what was counted in its file (in one row of it, 0 in the others).
_COMMON = [
    ("file", pa.int32()),
    ("line", pa.int64()),
    ("item", pa.int64()),
    ("problem", pa.string()),
    ("num_texts", pa.int64()),
    ("num_truncated", pa.int64()),
    ("num_empty_questions", pa.int64()),
    ("skipped", pa.string()),  # JSON of a Skipped
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
            ("passage_tokens", TOKENS),
            ("hard_negative_tokens", pa.list_(TOKENS)),
            ("hard_negative_ids", pa.list_(pa.int64())),
        ]
    ),
    "questions": pa.schema([*_QUESTION, ("question", pa.string()), ("gold_doc", pa.string())]),
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


@dataclass
class TokenizerSpec:
    """What a task needs to make the tokenizer."""

    folder: str
    settings: EncoderSettings
    trust_remote_code: bool = False
    copy: Any = None  # of the folder, for nodes that lack it: `model_copies.bring_model`


def to_table(rows: list[dict[str, Any]], kind: str) -> pa.Table:
    schema = SCHEMAS[kind]
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names}
    )


@functools.lru_cache(maxsize=1)
def _cached_tokenizer(key: str) -> TextTokenizer:
    folder, settings, trust_remote_code = json.loads(key)
    return TextTokenizer(folder, EncoderSettings(**settings), trust_remote_code)


def make_tokenizer(spec: TokenizerSpec) -> TextTokenizer:
    return _cached_tokenizer(json.dumps([spec.folder, vars(spec.settings), spec.trust_remote_code]))


def train_rows(records: list[tuple[int, QARecord]], tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    questions = _once(tokenizer.questions, [text for _, record in records for text in record.questions])
    texts = [doc.fmt_content for _, record in records for doc in record.gold_docs + record.hard_neg_docs]
    passages = _once(tokenizer.passages, texts)
    rows = _flatten(records, questions)
    for row in rows:
        gold, negatives = row.pop("gold"), row.pop("record").hard_neg_docs
        row["passage_tokens"] = passages[gold.fmt_content]
        row["hard_negative_tokens"] = [passages[doc.fmt_content] for doc in negatives]
        row["hard_negative_ids"] = [doc.passage_id for doc in negatives]
    return rows


def question_rows(records: list[tuple[int, QARecord]], tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    questions = _once(tokenizer.questions, [text for _, record in records for text in record.questions])
    rows = _flatten(records, questions)
    for row in rows:
        row.pop("record")
        row["gold_doc"] = json.dumps(row.pop("gold").to_dict())
    return rows


def _flatten(records: list[tuple[int, QARecord]], questions: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per question and gold passage."""
    rows = []
    for line, record in records:
        for number, question in enumerate(record.questions):
            for gold_number, gold in enumerate(record.gold_docs):
                rows.append(
                    {
                        "line": line,
                        "item": number * len(record.gold_docs) + gold_number,
                        "question_item": number,
                        "question": as_utf8(question),
                        "question_key": question_key(question),
                        "question_tokens": questions[question],
                        "passage_id": gold.passage_id,
                        "has_chat_history": record.has_chat_history,
                        "gold": gold,
                        "record": record,
                    }
                )
    return rows


def document_rows(records: list[tuple[int, Document]], tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    passages = _once(tokenizer.passages, [document.fmt_content for _, document in records])
    return [
        {
            "line": line,
            "item": 0,
            "passage_id": document.passage_id,
            "text_hash": passage_id(None, document.fmt_content),
            "tokens": passages[document.fmt_content],
            "document": json.dumps(document.to_dict()),
        }
        for line, document in records
    ]


def _once(tokenise: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """Token rows by text; a text that comes often is tokenised once."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, tokenise(distinct), strict=True))
