"""The records of the data contract, and who a passage is.

A passage is identified by (`metadata.source`, `page_content`), hashed to 64 bits, so that the same passage is the same
passage in every file, batch, rank and metric. Where there is no source, `_id` takes its place, else the title: many
passages of a data set may have no text but their title.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

IDENTITY = ("source", "_id", "title")  # the first of them in the metadata, with the content, says who a passage is


@dataclass
class Document:
    """A passage: `fmt_content` is the text that is embedded, `page_content` and its `origin` are its identity."""

    page_content: str
    fmt_content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fmt_content:
            self.fmt_content = format_passage(self.page_content, self.metadata)

    @property
    def passage_id(self) -> int:
        """Signed 64-bit identity of the passage."""
        return passage_id(self.origin, self.page_content)

    @property
    def origin(self) -> Any:
        """The source, else the id, else the title; None where there is none of them."""
        found = (self.metadata.get(name) for name in IDENTITY)
        return next((value for value in found if value not in (None, "")), None)

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
    hard_neg_scores: list[float] | None = None  # a teacher's, one for each of `hard_neg_docs`
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


def passage_id(origin: Any, page_content: str) -> int:
    """Signed 64-bit hash of (origin, page_content); a missing origin counts as empty."""
    return _hash64(f"{'' if origin is None else origin}\0{page_content}")


def text_hash(text: str) -> int:
    """Signed 64-bit hash of an embedded text."""
    return passage_id(None, text)


def question_key(question: str) -> int:
    """Signed 64-bit hash of a question's wording, case and white space folded."""
    return _hash64(" ".join(question.split()).casefold())


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
