"""The records of the data contract: what they are, how a value becomes one, and who a passage is.

A passage is identified by (`metadata.source`, `page_content`), hashed to 64 bits, so that the same passage is the same
passage in every file, batch, rank and metric.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

MAX_QUESTIONS = 100_000  # of one passage


class RecordError(ValueError):
    """One record is not what the data contract asks for; the message says what was found, without the place."""


@dataclass
class Document:
    """A passage: `fmt_content` is the text that is embedded, `page_content` and the source are its identity."""

    page_content: str
    fmt_content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fmt_content:
            self.fmt_content = format_passage(self.page_content, self.metadata)

    @property
    def passage_id(self) -> int:
        """Signed 64-bit identity of the passage."""
        return passage_id(self.metadata.get("source"), self.page_content)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON, without a `fmt_content` that reading it again would rebuild."""
        record: dict[str, Any] = {"page_content": self.page_content, "metadata": self.metadata}
        if self.fmt_content != format_passage(self.page_content, self.metadata):
            record["fmt_content"] = self.fmt_content
        return record


@dataclass
class QARecord:
    """One line of a question file: questions, the passages that answer them, and some that only look right."""

    questions: list[str]
    gold_docs: list[Document]
    hard_neg_docs: list[Document]
    has_chat_history: bool = False
    num_empty_questions: int = 0  # left out of `questions`

    @property
    def passages(self) -> list[Document]:
        """The golds, then the hard negatives."""
        return self.gold_docs + self.hard_neg_docs


def format_passage(page_content: str, metadata: dict[str, Any]) -> str:
    """The embedded text of a passage that brings none: source, title and content (LocalRQA's format)."""
    lines = [
        f"{label}: {metadata[key]}\n" for label, key in (("Source", "source"), ("Title", "title")) if metadata.get(key)
    ]
    return ("".join(lines) + "Content:\n" + page_content).strip()


def passage_id(source: Any, page_content: str) -> int:
    """Signed 64-bit hash of (source, page_content); a missing source counts as empty."""
    return _hash64(f"{'' if source is None else source}\0{page_content}")


def text_hash(text: str) -> int:
    """Signed 64-bit hash of an embedded text."""
    return passage_id(None, text)


def question_key(question: str) -> int:
    """Signed 64-bit hash of a question's wording, case and white space folded."""
    return _hash64(" ".join(question.split()).casefold())


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def parse_document(value: Any) -> Document:
    """A Document from its JSON form, or from the raw form `{"text", "source", "title"}`.

    Raises:
        RecordError: it is neither.
    """
    if not isinstance(value, dict):
        raise RecordError(f"a document has to be an object, found {_kind(value)}")
    if "page_content" in value:
        content, formatted, metadata = (
            value["page_content"],
            value.get("fmt_content") or "",
            value.get("metadata") or {},
        )
        if isinstance(metadata, str):  # as Parquet keeps what differs from row to row
            try:
                metadata = json.loads(metadata)
            except (ValueError, RecursionError):
                raise RecordError(f"`metadata` has to be an object, or JSON of one, found {metadata[:60]!r}") from None
    elif "text" in value:
        content, formatted = value["text"], ""
        metadata = {key: item for key, item in value.items() if key != "text"}
    else:
        raise RecordError(f"a document needs `page_content` (or `text`), found {_keys(value)}")
    for name, item, kind in (("page_content", content, str), ("fmt_content", formatted, str)):
        if not isinstance(item, kind):
            raise RecordError(f"`{name}` has to be a string, found {_kind(item)}")
    if not isinstance(metadata, dict):
        raise RecordError(f"`metadata` has to be an object, found {_kind(metadata)}")
    return Document(content, formatted, metadata)


def parse_qa_record(value: Any) -> QARecord:
    """A QARecord from `{"questions": [...], "gold_docs": [...]}` or the flat form with `question`.

    Raises:
        RecordError: a field is missing or of the wrong type.
    """
    if not isinstance(value, dict):
        raise RecordError(f"a record has to be an object, found {_kind(value)}")
    if "questions" in value:
        questions = value["questions"]
    elif "question" in value:
        questions = [value["question"]]
    else:
        raise RecordError(f"no `questions` (or `question`), found {_keys(value)}")
    strangers = (
        [item for item in questions if not isinstance(item, str)] if isinstance(questions, list) else [questions]
    )
    if strangers:
        raise RecordError(f"`questions` has to be a list of strings, found {_kind(strangers[0])}")
    if not questions:
        raise RecordError("`questions` is empty")
    if len(questions) > MAX_QUESTIONS:
        raise RecordError(f"`questions` has {len(questions):,} of them, at most {MAX_QUESTIONS:,} can be right")
    if "gold_docs" not in value:
        raise RecordError(f"no `gold_docs`, found {_keys(value)}")
    if not isinstance(value["gold_docs"], list) or not value["gold_docs"]:
        raise RecordError(
            f"`gold_docs` has to be a list with at least one document, found {_kind(value['gold_docs'])}"
        )
    negatives = value.get("hard_neg_docs") or []
    if not isinstance(negatives, list):
        raise RecordError(f"`hard_neg_docs` has to be a list, found {_kind(negatives)}")
    asked = [question for question in questions if question.strip()]
    return QARecord(
        questions=asked,
        gold_docs=[parse_document(document) for document in value["gold_docs"]],
        hard_neg_docs=[parse_document(document) for document in negatives],
        has_chat_history=bool(value.get("chat_history")),
        num_empty_questions=len(questions) - len(asked),
    )


def parse_json(line: str) -> Any:
    """The JSON value of one line.

    Raises:
        RecordError: it is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON ({error}), found {line.strip()[:60]!r}") from None


def _keys(value: dict) -> str:
    names = [" ".join(key.split())[:40] for key in list(value)[:8]]  # a key may hold line breaks
    return "keys " + (", ".join(f"`{name}`" for name in names) or "none")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, str)) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'string'}"
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(type(value), f"{value!r:.40}")
