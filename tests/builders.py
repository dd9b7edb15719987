"""Makes test data without Ray: Arrow tables with the columns of `rqa_ray.data.readers`, and real pickles.

A row of a table is a dict; columns that it leaves out are 0, empty or null.
"""

import dataclasses
import json
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from rqa_ray.data.rows import TrainingRows
from rqa_ray.data.schema import Document, question_key
from rqa_ray.data.token_tables import SCHEMAS
from rqa_ray.evaluation.predictions import AskedQuestions, Documents


def table(kind: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Makes one block of `train`, `questions` or `corpus`.

    A training row may have `passage_tokens` and `hard_negative_tokens`; it then brings its passages.
    """
    schema = SCHEMAS[kind]
    rows = [_with_passages(row) for row in rows] if kind == "train" else rows
    columns = zip(schema.names, schema.types, strict=True)
    return pa.table(
        {name: pa.array([row.get(name, _default(kind_of)) for row in rows], kind_of) for name, kind_of in columns}
    )


def _with_passages(row: dict[str, Any]) -> dict[str, Any]:
    ids = [row.get("passage_id", 0), *row.get("hard_negative_ids", [])]
    tokens = [row.get("passage_tokens", []), *row.get("hard_negative_tokens", [])]
    new = {"new_passage_ids": ids, "new_passage_tokens": tokens, "new_passage_hashes": [0] * len(ids)}
    return {"hard_negative_scores": [None] * (len(ids) - 1), "gold_score": None, **new, **row}


def _default(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return []
    if pa.types.is_float64(kind):  # grades
        return 1.0
    return None if pa.types.is_string(kind) else False if pa.types.is_boolean(kind) else 0


def random_train_rows(
    num_rows: int,
    seed: int = 0,
    max_length: int = 20,
    num_passages: int = 30,
    max_negatives: int = 3,
    vocabulary: int = 1000,
) -> list[dict[str, Any]]:
    """Makes rows in input order. Passages repeat as golds and as negatives; every third question repeats a wording."""
    generator = np.random.default_rng(seed)

    def tokens() -> list[int]:
        return generator.integers(1, vocabulary, generator.integers(1, max_length + 1)).tolist()

    passages = [tokens() for _ in range(num_passages)]
    rows = []
    for line in range(num_rows):
        gold = int(generator.integers(num_passages))
        negatives = generator.integers(num_passages, size=generator.integers(max_negatives + 1)).tolist()
        rows.append(
            {
                "line": line,
                "question_key": line // 3 if line % 3 == 1 else line,
                "question_tokens": tokens(),
                "passage_id": 100 + gold,
                "passage_tokens": passages[gold],
                "hard_negative_ids": [100 + negative for negative in negatives],
                "hard_negative_tokens": [passages[negative] for negative in negatives],
            }
        )
    return rows


def random_training_rows(num_rows: int, **options: Any) -> TrainingRows:
    """Makes the same rows in the form that workers use."""
    return TrainingRows.from_tables([table("train", random_train_rows(num_rows, **options))])


DOCUMENTS = [Document(f"text {number} ü", "", {"source": f"doc/{number}", "title": "T"}) for number in range(5)]
DOCUMENTS[3].fmt_content = "an embedded text of its own"
ASKED = {"What is 0?": [0], "What is 1 or 3?": [1, 3], "what  IS 0?": [2]}  # the first and the last are one wording

GRADES = {3: 2.0}  # by number of the gold; the others have 1
INSTRUCTIONS = {"What is 1 or 3?": "Find: "}


def documents() -> Documents:
    """DOCUMENTS from two blocks, in which document 0 occurs twice."""
    rows = [
        {"line": line, "passage_id": DOCUMENTS[number].passage_id, "document": json.dumps(DOCUMENTS[number].to_dict())}
        for line, number in enumerate([0, 1, 2, 0, 3, 4])
    ]
    return Documents([table("corpus", rows[4:]), table("corpus", rows[:4])])


def asked_questions() -> AskedQuestions:
    """ASKED from two blocks; its numbers are those of the gold documents."""
    rows = [
        {
            "line": line,
            "item": item,
            "question": question,
            "instruction": INSTRUCTIONS.get(question),
            "question_key": question_key(question, INSTRUCTIONS.get(question)),
            "passage_id": DOCUMENTS[number].passage_id,
            "gold_grade": GRADES.get(number, 1.0),
            "gold_doc": json.dumps(DOCUMENTS[number].to_dict()),
        }
        for line, (question, numbers) in enumerate(ASKED.items())
        for item, number in enumerate(numbers)
    ]
    return AskedQuestions([table("questions", rows[2:]), table("questions", rows[:2])])


def dataclass_document() -> type:
    @dataclasses.dataclass
    class Document:
        page_content: str
        fmt_content: str = ""
        metadata: dict = dataclasses.field(default_factory=dict)

    return Document


def pickled(make_class: Callable[[], type], module: str, build: Callable[[type], Any], protocol: int) -> bytes:
    """Pickles `build(Document)` while `module` can be imported; afterwards it cannot be imported any more."""
    document = make_class()
    document.__module__, document.__qualname__ = module, "Document"
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    assert not set(names) & set(sys.modules), "the test would hide a package that is installed and in use"
    try:
        sys.modules.update({name: types.ModuleType(name) for name in names})
        vars(sys.modules[module])["Document"] = document
        return pickle.dumps(build(document), protocol)
    finally:
        for name in names:
            del sys.modules[name]
