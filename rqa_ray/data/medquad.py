"""Converts MedQuAD to the files of a training run: health questions with answers of the National Institutes of Health.

MedQuAD (Ben Abacha and Demner-Fushman 2019, https://github.com/abachaa/MedQuAD, CC BY 4.0) is a folder of XML files
for each of 12 websites, one file for each page. Three websites come without answers, because of their copyright.

1. Read every pair with an answer. A passage is an answer. Its source is the address of the page and the number of the
   pair, its title is the topic of the page.
2. Merge: an answer that occurs several times is one passage, and a question that occurs several times has several
   golds.
3. Split, with a fixed seed: pages that share a question or an answer stay together, so that what is learned from train
   answers nothing of eval or test. Eval and test get 12% of the questions each.
4. Write train, eval, test and the corpus: all four files or none.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqa_ray.corpus_settings import MedquadSettings
from rqa_ray.data.schema import Document
from rqa_ray.data.splits import folded, split_groups, write_together
from rqa_ray.errors import InputError
from rqa_ray.job_output import JobResult
from rqa_ray.places import check_local_folder

REPOSITORY = "https://github.com/abachaa/MedQuAD"
MIN_ANSWER_CHARS = 25  # shorter answers are headings of the websites ("Topics")
SEED = 0


@dataclass(frozen=True)
class Pair:
    """A question and its answer on a page."""

    question: str
    answer: str
    page: str
    number: str  # number of the pair on its page
    title: str


@dataclass
class Question:
    """A question with all passages that answer it, in the order of the files."""

    text: str
    golds: dict[str, Document] = field(default_factory=dict)  # golds by their content
    pages: set[str] = field(default_factory=set)


@dataclass
class MedquadResult(JobResult):
    """What was found in MedQuAD."""

    output_dir: str
    pairs: int
    answered: int  # pairs with an answer
    passages: int
    questions: dict[str, int]  # by split
    problems: list[str]  # a line about each file that was left out

    def describe(self) -> str:
        """Returns lines for a person."""
        counts = ", ".join(f"{number:,} {split}" for split, number in self.questions.items())
        lines = [
            f"{self.pairs:,} questions, {self.answered:,} with an answer; the others are left out",
            *self.problems,
            f"{self.passages:,} distinct passages; distinct questions: {counts}",
            f"written: {self.output_dir}",
        ]
        return "\n".join(lines)


def medquad(settings: MedquadSettings) -> MedquadResult:
    """Reads a copy of MedQuAD, and writes train, eval, test and documents.jsonl.

    Raises:
        InputError: there is no MedQuAD, or the folder cannot be written to; nothing was written.
    """
    check_local_folder(settings.output_dir)
    pairs, problems = read_pairs(Path(settings.source))
    answered = [pair for pair in pairs if pair.question and len(pair.answer) >= MIN_ANSWER_CHARS]
    if not answered:
        raise InputError(
            f"--source {settings.source}: no folders of XML files with questions and answers; "
            f"get them by: git clone --depth 1 {REPOSITORY} {settings.source}"
        )
    passages, questions = merge(answered)
    splits = split(questions)
    files = {f"{name}.jsonl": records(splits[name]) for name in splits}
    files["documents.jsonl"] = [passage.to_dict() for passage in passages]
    output = Path(settings.output_dir)
    for name in files:
        if (output / name).exists():
            raise InputError(f"--output_dir {output}: has {name} already; choose another folder or delete the file")
    write_together(output, files)
    counts = {name: len(splits[name]) for name in ("train", "eval", "test")}
    written = [str(output / name) for name in files]
    return MedquadResult(
        settings.output_dir, len(pairs), len(answered), len(passages), counts, problems, files=written
    )


def read_pairs(folder: Path) -> tuple[list[Pair], list[str]]:
    """Returns the pairs of all websites in the order of the file numbers, and a line on each file that is no XML."""
    pairs: list[Pair] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*/*.xml"), key=_by_number):
        try:
            pairs += read_page(path, path.relative_to(folder).as_posix())
        except (OSError, ElementTree.ParseError) as error:
            problems.append(f"left out: {path}: not XML ({error})")
    return pairs, problems


def read_page(path: Path, name: str) -> Iterator[Pair]:
    """Yields the pairs of a file, also pairs without an answer; `name` replaces the address if a page has none.

    Raises:
        OSError, ElementTree.ParseError: the file cannot be read.
    """
    document = ElementTree.parse(path).getroot()
    address, title = document.get("url") or name, " ".join(_text(document, "Focus").split())
    for place, pair in enumerate(document.iter("QAPair"), start=1):
        question = re.sub(r"[\s?]*\?$", "?", " ".join(_text(pair, "Question").split()))  # "asthma? ?" as it stands
        yield Pair(question, clean(_text(pair, "Answer")), address, pair.get("pid") or str(place), title)


def clean(text: str) -> str:
    """Removes the indentation of the XML from each line, and leaves one blank line between paragraphs."""
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def merge(pairs: Iterable[Pair]) -> tuple[list[Document], list[Question]]:
    """Returns the distinct passages and the distinct questions, in the order of the files."""
    passages: dict[str, Document] = {}
    questions: dict[str, Question] = {}
    for pair in pairs:
        metadata = {"source": f"{pair.page}#{pair.number}", "title": pair.title}
        passage = passages.setdefault(pair.answer, Document(pair.answer, "", metadata))
        question = questions.setdefault(folded(pair.question), Question(pair.question))
        question.golds[pair.answer] = passage
        question.pages.add(pair.page)
    return list(passages.values()), list(questions.values())


def split(questions: list[Question]) -> dict[str, list[Question]]:
    """Splits questions into train, eval and test, which have no page and no passage in common."""
    pages_of_answer: dict[str, set[str]] = {}
    for question in questions:
        for answer in question.golds:
            pages_of_answer.setdefault(answer, set()).update(question.pages)
    first_page = together(pages_of_answer.values())
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(first_page[min(question.pages)], []).append(question)
    return split_groups(groups, SEED)


def together(links: Iterable[set[str]]) -> dict[str, str]:
    """Maps each name to the first name of its group.

    Sets that share names, directly or through others, are one group.
    """
    leader: dict[str, str] = {}

    def first(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for names in links:
        firsts = {first(name) for name in names}
        leader |= dict.fromkeys(firsts, min(firsts))
    return {name: first(name) for name in leader}


def records(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Returns a record in LocalRQA's form for each set of gold passages, with all questions that the set answers."""
    same_golds: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        same_golds.setdefault(tuple(question.golds), []).append(question)
    return [
        {
            "questions": [question.text for question in group],
            "gold_docs": [passage.to_dict() for passage in group[0].golds.values()],
            "hard_neg_docs": [],
            "chat_history": [],
        }
        for group in same_golds.values()
    ]


def _text(parent: ElementTree.Element, name: str) -> str:
    found = parent.find(name)
    return "" if found is None else "".join(found.itertext())


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", f"{path.parent.name}/{path.name}")
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
