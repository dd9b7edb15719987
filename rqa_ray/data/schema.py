"""The records of the data contract, and the id of a passage.

The id is a 64-bit hash of (`metadata.source`, `page_content`), so a passage has the same id in every file, batch, rank
and metric. If there is no source, `_id` takes its place, else the title: in some data sets, many passages have no text
but their title.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

IDENTITY = ("source", "_id", "title")  # the first of these in the metadata and the content make the passage's id


@dataclass
class Document:
    """A passage: `fmt_content` is the text that is embedded; `page_content` and `origin` make the id."""

    page_content: str
    fmt_content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fmt_content:
            self.fmt_content = format_passage(self.page_content, self.metadata)

    @property
    def passage_id(self) -> int:
        """Signed 64-bit id of the passage."""
        return passage_id(self.origin, self.page_content)

    @property
    def origin(self) -> Any:
        """The source, else the `_id`, else the title; None if there is none of them."""
        return next((self.metadata[name] for name in IDENTITY if is_given(self.metadata, name)), None)

    @property
    def source_id(self) -> int:
        """Signed 64-bit id of the source document: `origin` up to a `#`, after which a URL names a place inside."""
        return self.passage_id if self.origin is None else _hash64(str(self.origin).partition("#")[0])

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as JSON; leaves out a `fmt_content` that reading would build again."""
        record: dict[str, Any] = {"page_content": self.page_content, "metadata": self.metadata}
        if self.fmt_content != format_passage(self.page_content, self.metadata):
            record["fmt_content"] = self.fmt_content
        return record


@dataclass
class QARecord:
    """One line of a question file: questions, passages that answer them, and hard negatives."""

    questions: list[str]
    gold_docs: list[Document]
    hard_neg_docs: list[Document]
    # scores of a teacher, one for each of `hard_neg_docs` and `gold_docs`; None for a gold that has no score
    hard_neg_scores: list[float] | None = None
    gold_scores: list[float | None] | None = None
    gold_grades: list[float] | None = None  # of `gold_docs`, above 0; None if all are 1
    has_chat_history: bool = False
    num_empty_questions: int = 0  # empty questions, which are not in `questions`
    # place of the first question in the line, because labels may split a line into several records
    first_question: int = 0
    instruction: str | None = None  # goes before each question, in place of the model's query prefix
    # ids in the corpus, if the line names its passages by them; `gold_ids.py` then fills in the documents
    gold_ids: list[str] | None = field(default=None, compare=False)
    hard_neg_ids: list[str] = field(default_factory=list, compare=False)

    @property
    def passages(self) -> list[Document]:
        """The golds, then the hard negatives."""
        return self.gold_docs + self.hard_neg_docs

    @property
    def grades(self) -> list[float]:
        """The grades of the golds."""
        return self.gold_grades or [1.0] * len(self.gold_docs)

    @property
    def source_key(self) -> int:
        """Signed 64-bit id of the source document of the first gold, by which `share.py` chooses."""
        return self.gold_docs[0].source_id


@dataclass
class Label:
    """A passage that looks like an answer to a question, and what a person decided about it."""

    question: str
    passage: Document
    accept: bool | None  # None if nothing is decided
    instruction: str | None = None  # of the question


def is_given(metadata: dict[str, Any], name: str) -> bool:
    """Returns whether metadata has a value of that name. The number 0 is a value; null and an empty string are not."""
    return metadata.get(name) not in (None, "")


def format_passage(page_content: str, metadata: dict[str, Any]) -> str:
    """Builds the embedded text of a passage from source, title and content (LocalRQA's format)."""
    fields = [("Source", "source"), ("Title", "title")]
    lines = [f"{label}: {metadata[name]}\n" for label, name in fields if is_given(metadata, name)]
    return ("".join(lines) + "Content:\n" + page_content).strip()


def passage_id(origin: Any, page_content: str) -> int:
    """Returns the signed 64-bit hash of (origin, page_content); a missing origin counts as empty."""
    return _hash64(f"{'' if origin is None else origin}\0{page_content}")


def text_hash(text: str) -> int:
    """Returns the signed 64-bit hash of an embedded text."""
    return passage_id(None, text)


def question_key(question: str, instruction: str | None = None) -> int:
    """Returns the signed 64-bit hash of a question's instruction and wording, without case and white space.

    So one wording with two instructions is two questions, each with its own golds and its own negatives. A question
    without an instruction has the hash of its wording.
    """
    return _hash64(" ".join(f"{instruction or ''}{question}".split()).casefold())


def instruction_entry(instruction: str | None) -> dict[str, str]:
    """Returns the entry `instruction` of a line that is written; empty if the question has none."""
    return {} if instruction is None else {"instruction": instruction}


def grades_entry(grades: list[float]) -> dict[str, list[float]]:
    """Returns the entry `gold_grades` of a line that is written; empty if all grades are 1."""
    return {} if set(grades) == {1} else {"gold_grades": grades}


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
