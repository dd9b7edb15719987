"""Computes the numbers of a data set: counts, overlaps of splits, lengths, false negatives (`report.py` prints them).

The numbers come from the blocks that training uses. Their small columns are enough for all but the lengths of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, inner, list_lengths
from rqa_ray.data.counts import Counts, num_no_cosines


@dataclass
class Split:
    """One question file: its R rows are the pairs of a question and one of its golds."""

    counts: Counts
    share_cut: float  # share of texts that are cut at the limit of tokens
    places: np.ndarray  # (3, R) file, line, and number of the question in the line
    questions: np.ndarray  # (R,) number of the row's question
    keys: np.ndarray  # (R,) hashes of the questions' wordings
    golds: np.ndarray  # (R,) passage ids
    negatives: np.ndarray  # passage ids of all hard negatives
    question_lengths: np.ndarray  # (questions,) tokens; empty where the blocks have no tokens

    @classmethod
    def from_tables(cls, tables: list[pa.Table]) -> Split:
        places = np.stack([column(tables, name) for name in ("file", "line", "question_item")])
        _, first, questions = np.unique(places, axis=1, return_index=True, return_inverse=True)
        golds, is_train = column(tables, "passage_id"), "hard_negative_ids" in tables[0].column_names
        negatives = inner(tables, "hard_negative_ids") if is_train else np.zeros(0, np.int64)
        scores = inner(tables, "hard_negative_scores") if is_train else np.zeros(0, np.float32)
        return cls(
            counts=Counts(
                num_rows=len(golds),
                num_questions=len(first),
                num_empty=int(column(tables, "num_empty_questions").sum()),
                num_chats=int(sum(np.sum(table["has_chat_history"].to_numpy()) for table in tables)),
                num_negatives=len(negatives),
                num_scored=int(np.sum(~np.isnan(scores))),
                num_no_cosines=num_no_cosines(scores),
                smallest_gold=int(golds.min()),
                largest_gold=int(golds.max()),
            ),
            share_cut=_share_cut(tables),
            places=places,
            questions=questions.reshape(-1),
            keys=column(tables, "question_key"),
            golds=golds,
            negatives=negatives,
            question_lengths=_lengths(tables, "question_tokens", first),
        )

    @property
    def num_lines(self) -> int:
        """Number of records with a question."""
        return np.unique(self.places[:2], axis=1).shape[1]

    @property
    def num_wordings_with_several_golds(self) -> int:
        """Number of wordings with several golds; a wording that is asked often counts once."""
        keys = np.unique(np.stack([self.keys, self.golds]), axis=1)[0]
        return int((np.unique(keys, return_counts=True)[1] > 1).sum())

    @property
    def num_wordings_repeated(self) -> int:
        """Number of wordings that several questions have."""
        keys = np.unique(np.stack([self.keys, self.questions]), axis=1)[0]
        return int((np.unique(keys, return_counts=True)[1] > 1).sum())

    @property
    def has_equal_golds(self) -> bool:
        """Whether every wording has all golds, so that no question's gold is a negative of another question."""
        wanted = len(np.unique(self.keys)) * len(np.unique(self.golds))  # pairs of a wording and a gold
        if len(self.golds) < wanted:  # as usual; then the pairs, which take long to sort, need not be counted
            return False
        return np.unique(np.stack([self.keys, self.golds]), axis=1).shape[1] == wanted

    def num_questions_with(self, passage_ids: np.ndarray) -> int:
        """Returns how many questions have a gold among the passages."""
        return len(np.unique(self.questions[np.isin(self.golds, passage_ids)]))

    def false_negative_share(self, batch_size: int) -> float:
        """Returns the expected share of questions in a random batch that meet their own passage as a negative.

        The result is exact. Of the other N - 1 rows, c hold the passage; a batch draws B - 1 of them. The product is
        the probability that the batch draws none of the c rows, C(N - 1 - c, B - 1) / C(N - 1, B - 1).
        """
        rows_of_passage = np.unique(self.golds, return_counts=True)[1]
        others, drawn = len(self.golds) - 1, min(batch_size, len(self.golds)) - 1
        not_met = [np.prod(np.clip(1 - drawn / (others - np.arange(c)), 0, 1)) for c in rows_of_passage - 1]
        return float(1 - np.dot(rows_of_passage, not_met) / len(self.golds))


@dataclass
class Survey:
    """The numbers of a data set: its splits, and P distinct passages of D documents."""

    splits: dict[str, Split]  # train (unless it is streamed), eval, and test if there is one
    passage_ids: np.ndarray  # (P,) sorted
    num_documents: int
    share_cut: float  # share of passages that are cut at the limit of tokens
    passage_lengths: np.ndarray  # (P,) tokens; empty where the blocks have no tokens
    num_other_texts: int  # passages of train with another embedded text in the corpus
    streamed: Counts | None = None  # counts of train, if it is streamed
    missing: dict[str, np.ndarray] = field(init=False)  # golds that are not in the corpus, by split

    def __post_init__(self) -> None:
        golds = {name: np.unique(split.golds) for name, split in self.splits.items()}
        self.missing = {name: ids[~np.isin(ids, self.passage_ids)] for name, ids in golds.items()}

    @classmethod
    def of(cls, tables: Mapping[str, list[pa.Table]], streamed: Counts | None = None) -> Survey:
        """Makes the survey from the blocks of `corpus` and the splits, with all columns or only the small ones."""
        corpus = tables["corpus"]
        ids = column(corpus, "passage_id")
        distinct, first = np.unique(ids, return_index=True)
        splits = {name: Split.from_tables(tables[name]) for name in ("train", "eval", "test") if name in tables}
        return cls(
            splits,
            distinct,
            len(ids),
            _share_cut(corpus),
            _lengths(corpus, "tokens", first),
            _num_other_texts(tables.get("train", []), distinct, column(corpus, "text_hash")[first]),
            streamed,
        )

    @property
    def train(self) -> Counts:
        """Numbers of the training questions, streamed or not."""
        return self.streamed or self.splits["train"].counts

    @property
    def shares_cut(self) -> dict[str, float]:
        """Shares of the texts that are cut at the limit of tokens, of the splits and the corpus."""
        return {name: split.share_cut for name, split in self.splits.items()} | {"corpus": self.share_cut}

    @property
    def has_equal_golds(self) -> bool:
        """Whether all training questions have the same golds; of streamed questions, whether there is one gold."""
        return self.streamed.has_one_gold if self.streamed else self.splits["train"].has_equal_golds

    @property
    def question_keys(self) -> Iterator[int]:
        """Keys of all questions; without those of train if train is streamed."""
        return (int(key) for split in self.splits.values() for key in split.keys)


def _share_cut(tables: list[pa.Table]) -> float:
    """Returns the share of tokenized texts that were cut."""
    cut, texts = (int(column(tables, name).sum()) for name in ("num_truncated", "num_texts"))
    return cut / max(texts, 1)


def _lengths(tables: list[pa.Table], name: str, rows: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of some rows; empty if the blocks have no tokens."""
    return list_lengths(tables, name)[rows] if name in tables[0].column_names else np.zeros(0, np.int64)


def _num_other_texts(train: list[pa.Table], ids: np.ndarray, text_hashes: np.ndarray) -> int:
    """Counts corpus passages, given by ids (P,) and text hashes, that have another text in the training blocks."""
    own, own_hashes = (inner(train, f"new_passage_{name}") for name in ("ids", "hashes"))
    is_there = np.isin(own, ids)
    there = np.searchsorted(ids, own[is_there])
    return len(np.unique(there[text_hashes[there] != own_hashes[is_there]]))
