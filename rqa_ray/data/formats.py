"""Recognizes the form of a record by its keys, and turns its values into questions and passages.

A new form is one entry of `FORMATS`. Its records are read, counted, tokenized and trained on like all others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any

from rqa_ray.data.schema import IDENTITY, Document, Label, QARecord
from rqa_ray.data.values import (
    RecordError,
    id_text,
    ids_of,
    instruction_of,
    keys_of,
    kind_of,
    parse_json,
    scores_of,
    text_of,
    texts_of,
)

MAX_QUESTIONS = 100_000  # questions of one passage
ANCHORS = ("anchor", "query", "question")  # names of a column with questions
NEGATIVE = re.compile(r"negatives?(?:_?(\d{1,6}))?")  # names of columns with hard negatives
ID_KEYS = ("id", "_id", "doc_id", "docid")  # keys of a passage's id, the first of which counts
NOUNS = {"documents": "document", "questions": "record", "labels": "label"}


@dataclass(frozen=True)
class Format:
    """One form of record: objects with all of its keys have this form, whatever other keys they have."""

    name: str
    keys: tuple[str, ...]
    parse: Callable[[dict[str, Any]], Any]  # returns a QARecord, a Document or a Label; raises RecordError


def parse_document(value: Any) -> Document:
    """Makes a Document from an object of a known form.

    Raises:
        RecordError: the object has no known form, or a field has the wrong type.
    """
    return _parse(value, "documents")


def parse_qa_record(value: Any) -> QARecord:
    """Makes a QARecord from an object of a known form.

    Raises:
        RecordError: the object has no known form, or a field is missing or has the wrong type.
    """
    return _parse(value, "questions")


def parse_named_document(value: Any) -> tuple[str | None, Document]:
    """Makes a Document, with its id in the corpus, from an object of a known form; None if the object has no id.

    Raises:
        RecordError: as in `parse_document`.
    """
    document = parse_document(value)
    ids = (id_text(place.get(key)) for key in ID_KEYS for place in (value, document.metadata))
    return next(filter(None, ids), None), document


def parse_label(value: Any) -> Label:
    """Returns a Label from an object of a known form.

    Raises:
        RecordError: it is of none, or a field is of the wrong type.
    """
    return _parse(value, "labels")


def _parse(value: Any, kind: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"a {NOUNS[kind]} has to be an object, found {kind_of(value)}")
    for form in FORMATS[kind]:
        if all(key in value for key in form.keys):
            return form.parse(value)
    wanted = " or ".join(" and ".join(f"`{key}`" for key in form.keys) + f" ({form.name})" for form in FORMATS[kind])
    raise RecordError(f"a {NOUNS[kind]} needs {wanted}, found {keys_of(value)}")


def _full_document(value: dict[str, Any]) -> Document:
    """Reads `{"page_content", "fmt_content", "metadata"}`, the form of LocalRQA and langchain."""
    metadata = value.get("metadata") or {}
    if isinstance(metadata, str):  # in Parquet, metadata that differs from row to row is JSON in a string
        try:
            metadata = parse_json(metadata)
        except RecordError:
            raise RecordError(
                f"`metadata` has to be an object, or a string with a JSON object, found {metadata[:60]!r}"
            ) from None
    return _document(value["page_content"], value.get("fmt_content") or "", metadata)


def _raw_document(value: dict[str, Any]) -> Document:
    """Reads `{"text", "source", "title", ...}`, also with BEIR's `_id`."""
    return _document(value["text"], "", {key: item for key, item in value.items() if key != "text"})


def _document(content: Any, formatted: Any, metadata: Any) -> Document:
    for name, item in (("page_content", content), ("fmt_content", formatted)):
        if not isinstance(item, str):
            raise RecordError(f"`{name}` has to be a string, found {kind_of(item)}")
    if not isinstance(metadata, dict):
        raise RecordError(f"`metadata` has to be an object, found {kind_of(metadata)}")
    for name in IDENTITY:
        if isinstance(metadata.get(name), (list, dict)):  # it would be embedded in Python's notation
            raise RecordError(f"`{name}` has to be text or a number, found {kind_of(metadata[name])}")
    try:
        written = json.dumps(metadata, default=text_of)
    except TypeError as error:  # a map in Parquet may have keys of any type
        raise RecordError(f"`metadata` has to be JSON ({error})") from None
    return Document(content, formatted, parse_json(written))


def _qa_record(questions: Any, value: dict[str, Any]) -> QARecord:
    """Reads LocalRQA's form: questions, and `{"gold_docs": [], "hard_neg_docs": []}`.

    In place of the documents, `gold_ids` and `hard_neg_ids` may name passages of the corpus. `hard_neg_scores` and
    `gold_scores` are numbers of a teacher; a gold may have null. `gold_grades` are numbers above 0. `instruction` is a
    text.
    """
    strangers = [one for one in questions if not isinstance(one, str)] if isinstance(questions, list) else [questions]
    if strangers:
        raise RecordError(f"`questions` has to be a list of strings, found {kind_of(strangers[0])}")
    if not questions:
        raise RecordError("`questions` is empty")
    if len(questions) > MAX_QUESTIONS:
        raise RecordError(f"`questions` has {len(questions):,} questions, the limit is {MAX_QUESTIONS:,}")
    # earlier versions of jobs/prepare.py wrote passage ids as `gold_ids` beside the documents
    has_ids = not value.get("gold_docs") and value.get("gold_ids") is not None
    key, item = ("gold_ids", "id") if has_ids else ("gold_docs", "document")
    if key not in value:
        raise RecordError(f"no `gold_docs`, found {keys_of(value)}")
    golds = ids_of(value, key) if has_ids else value[key]
    if not isinstance(golds, list) or not golds:
        raise RecordError(f"`{key}` has to be a list with at least one {item}, found {kind_of(golds)}")
    negatives = value.get("hard_neg_docs") or []
    if not isinstance(negatives, list):
        raise RecordError(f"`hard_neg_docs` has to be a list, found {kind_of(negatives)}")
    negative_ids = ids_of(value, "hard_neg_ids")
    if negative_ids and not has_ids:
        raise RecordError("`hard_neg_ids` without `gold_ids`; name all passages of a record by their ids, or none")
    asked = [question for question in questions if question.strip()]
    return QARecord(
        questions=asked,
        gold_docs=[] if has_ids else [parse_document(document) for document in golds],
        hard_neg_docs=[parse_document(document) for document in negatives],
        hard_neg_scores=scores_of(value, "hard_neg_scores", negatives + negative_ids, "hard_neg_docs"),
        gold_scores=scores_of(value, "gold_scores", golds, key, NoneType),
        gold_grades=_grades(value, golds, key),
        has_chat_history=bool(value.get("chat_history")),
        num_empty_questions=len(questions) - len(asked),
        instruction=instruction_of(value),
        gold_ids=golds if has_ids else None,
        hard_neg_ids=negative_ids,
    )


def _grades(value: dict[str, Any], golds: list[Any], of: str) -> list[float] | None:
    grades = scores_of(value, "gold_grades", golds, of)
    if grades and min(grades) <= 0:
        raise RecordError(f"`gold_grades` has to be numbers above 0, found {min(grades)!r}; a gold is an answer")
    return grades if grades and set(grades) != {1} else None


def _columns(question: str, value: dict[str, Any]) -> QARecord:
    """Reads a row of sentence-transformers' data sets: `positive`, and maybe `negative`, `negative_1`, ...

    The number behind a name decides the order of the negatives.
    """
    if "gold_docs" in value:  # LocalRQA's form, with a field of this name
        return _qa_record([value[question]], value)
    numbers = {name: int(match[1] or 0) for name in value if (match := NEGATIVE.fullmatch(name))}
    columns = (value[name] for name in sorted(numbers, key=numbers.__getitem__))
    negatives = [text for one in columns for text in (one if isinstance(one, list) else [one]) if text is not None]
    golds = _from_texts("positive", [value["positive"]])
    passages = {"gold_docs": golds, "hard_neg_docs": _from_texts("negative", negatives)}
    others = {name: value.get(name) for name in ("instruction", "gold_scores", "gold_grades", "hard_neg_scores")}
    return _qa_record(texts_of(question, [value[question]]), passages | others)


def _flag_embedding(value: dict[str, Any]) -> QARecord:
    """Reads FlagEmbedding's form: lists `pos` and `neg`; `pos_scores` and `neg_scores` are those of a teacher.

    `prompt` is the instruction of the question.
    """
    golds, negatives = _from_texts("pos", _golds(value, "pos")), _from_texts("neg", value.get("neg") or [])
    return _qa_record(
        texts_of("query", [value["query"]]),
        {
            "gold_docs": golds,
            "hard_neg_docs": negatives,
            "gold_scores": scores_of(value, "pos_scores", golds, "pos", NoneType),
            "gold_grades": value.get("gold_grades"),
            "hard_neg_scores": scores_of(value, "neg_scores", negatives, "neg"),
            "instruction": instruction_of(value, "prompt" if "prompt" in value else "instruction"),
        },
    )


def _tevatron(value: dict[str, Any]) -> QARecord:
    """Reads Tevatron's form: `positive_passages` and `negative_passages` of `{"docid", "title", "text"}`."""
    golds, negatives = _golds(value, "positive_passages"), value.get("negative_passages") or []
    if isinstance(negatives, list):
        others = {name: value.get(name) for name in ("instruction", "gold_grades")}
        passages = {"gold_docs": golds, "hard_neg_docs": negatives}
        return _qa_record(texts_of("query", [value["query"]]), passages | others)
    raise RecordError(f"`negative_passages` has to be a list, found {kind_of(negatives)}")


def _golds(value: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(value[name], list) or not value[name]:
        raise RecordError(f"`{name}` has to be a list with at least one passage, found {kind_of(value[name])}")
    return value[name]


def _from_texts(name: str, texts: Any) -> list[dict[str, Any]]:
    """Returns passages of which only the texts are known."""
    if not all(text.strip() for text in texts_of(name, texts)):
        raise RecordError(f"`{name}` has an empty text")
    return [{"text": text} for text in texts]


def _label(value: dict[str, Any]) -> Label:
    """Reads `{"question", "rival", "accept"}`: a line of suspects.jsonl, in which a person has set `accept`.

    The line has the `instruction` of the question too, if there is one.
    """
    question, accept = value["question"], value.get("accept")
    if not isinstance(question, str) or not question.strip():
        raise RecordError(f"`question` has to be a string with a question, found {kind_of(question)}")
    if accept is not None and not isinstance(accept, bool):
        raise RecordError(f"`accept` has to be true, false or null, found {kind_of(accept)}")
    return Label(question, parse_document(value["rival"]), accept, instruction_of(value))


# By kind of file. A record has the first form whose keys it has.
FORMATS: dict[str, list[Format]] = {
    "documents": [
        Format("LocalRQA", ("page_content",), _full_document),
        Format("raw", ("text",), _raw_document),
    ],
    "questions": [
        Format("LocalRQA", ("questions",), lambda value: _qa_record(value["questions"], value)),
        Format("FlagEmbedding", ("query", "pos"), _flag_embedding),
        Format("Tevatron", ("query", "positive_passages"), _tevatron),
        *(Format("sentence-transformers", (name, "positive"), partial(_columns, name)) for name in ANCHORS),
        Format("LocalRQA, flat", ("question",), lambda value: _qa_record([value["question"]], value)),
    ],
    "labels": [
        Format("suspects.jsonl", ("question", "rival"), _label),
    ],
}
