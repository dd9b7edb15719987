"""Makes golds of passages that a person accepted as answers, for every question with the same wording.

All readers of question files apply `Labels` to each record, so `Labels` also say which side of a split is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from rqa_ray.data.gold_ids import NO_PASSAGES, PassagesById
from rqa_ray.data.held_out import ALL_RECORDS, Side
from rqa_ray.data.schema import Document, Label, QARecord, question_key
from rqa_ray.errors import InputError

SHOWN_CHARS = 60


@dataclass(frozen=True)
class Labels:
    """What is known about golds beside their own files.

    This is the decisions of a person: the accepted and the refused passages of each question, and how many were left
    open.
    """

    golds: dict[int, list[Document]] = field(default_factory=dict)  # accepted passages by question_key
    wordings: dict[int, str] = field(default_factory=dict)  # one wording of each question_key in `golds`
    refused: frozenset[tuple[int, int]] = frozenset()  # (question_key, passage id) of passages that are no answers
    num_undecided: int = 0
    # the passages of the corpus, where question files name golds by their ids
    passages: PassagesById = field(default=NO_PASSAGES, compare=False, repr=False)
    side: Side = ALL_RECORDS  # the records that count

    @classmethod
    def of(cls, labels: Iterable[Label]) -> Labels:
        """Collects the decisions of all files.

        Raises:
            InputError: one line accepts a passage for a question, and another line refuses it.
        """
        decided: dict[tuple[int, int], Label] = {}
        undecided = 0
        for label in labels:
            place = question_key(label.question, label.instruction), label.passage.passage_id
            undecided += label.accept is None
            if label.accept is not None and decided.setdefault(place, label).accept != label.accept:
                raise InputError(
                    f"--accepted_labels: one line accepts a passage for the question {_shown(label.question)} and "
                    f"another refuses it, {_shown(label.passage.page_content)}; keep one of the two"
                )
        golds: dict[int, list[Document]] = {}
        wordings = {}
        for (key, _), label in decided.items():
            if label.accept:
                golds.setdefault(key, []).append(label.passage)
                wordings[key] = label.question
        refused = frozenset(place for place, label in decided.items() if not label.accept)
        return cls(golds, wordings, refused, undecided)

    def apply(self, record: QARecord) -> Iterator[QARecord]:
        """Yields the record with its accepted golds; in several records if its questions then have different golds.

        A record that is not on the side yields nothing.
        """
        if not self.side.has(record):
            return
        more = [self._further(question, record) for question in record.questions] if self.golds else []
        if not any(more):
            yield record
            return
        for golds, numbered in groupby(enumerate(record.questions), lambda item: more[item[0]]):
            run = list(numbered)
            first = run[0][0]
            yield replace(
                record,
                questions=[question for _, question in run],
                gold_docs=[*record.gold_docs, *golds],
                gold_scores=record.gold_scores and [*record.gold_scores, *[None] * len(golds)],
                gold_grades=record.gold_grades and [*record.gold_grades, *[1.0] * len(golds)],
                num_empty_questions=0 if first else record.num_empty_questions,
                first_question=first,
            )

    def _further(self, question: str, record: QARecord) -> list[Document]:
        """Returns the accepted passages of a question that are not golds of its record."""
        own = {gold.passage_id for gold in record.gold_docs}
        accepted = self.golds.get(question_key(question, record.instruction), [])
        return [gold for gold in accepted if gold.passage_id not in own]

    def keys_in(self, record: QARecord) -> set[int]:
        """Returns the keys of those questions of a record for which a passage was accepted."""
        if not self.golds:
            return set()
        return self.golds.keys() & {question_key(question, record.instruction) for question in record.questions}

    def describe(self, asked: Iterable[int]) -> list[str]:
        """Returns lines for the user about the labels and the ids of golds; none without either.

        `asked` are the question keys of all files that are read.
        """
        lines = [self.passages.describe()] if self.passages.source else []
        if not (self.golds or self.refused or self.num_undecided):
            return lines
        found = self.golds.keys() & asked
        passages = {gold.passage_id for key in found for gold in self.golds[key]}
        line = f"accepted labels: {len(passages):,} passages are golds of {len(found):,} questions now"
        others = [f"{len(self.refused):,} refused"] * bool(self.refused)
        others += [f"{self.num_undecided:,} undecided"] * (self.num_undecided > 0)
        line += f" ({', '.join(others)})" if others else ""
        unknown = sorted(self.golds.keys() - found, key=self.wordings.__getitem__)
        if unknown:
            example = _shown(self.wordings[unknown[0]])
            line += f"; {len(unknown):,} of their questions are asked in no file, such as {example}"
        return [*lines, line]


NO_LABELS = Labels()


def _shown(text: str) -> str:
    return repr(" ".join(text.split())[:SHOWN_CHARS])
