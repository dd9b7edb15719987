"""What a person should know of the data before training: counts, overlaps of the splits, lengths, false negatives.

From the tokenized blocks that training would use, read without a limit on the length of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column, inner, list_lengths

LENGTHS = (32, 64, 128, 256, 512, 1024)  # upper ends of the histogram's columns (tokens)
BATCH_SIZES = (64, 256, 1024)


@dataclass
class Split:
    """One question file: its R rows are the pairs of a question and one of its golds."""

    num_lines: int
    questions: np.ndarray  # (R,) which question a row belongs to
    keys: np.ndarray  # (R,) wordings
    golds: np.ndarray  # (R,) passage ids
    negatives: np.ndarray  # passage ids of all hard negatives
    question_lengths: np.ndarray  # (questions,) tokens

    @classmethod
    def from_tables(cls, tables: list[pa.Table]) -> Split:
        places = np.stack([column(tables, name) for name in ("file", "line", "question_item")])
        _, first, questions = np.unique(places, axis=1, return_index=True, return_inverse=True)
        is_train = "hard_negative_ids" in tables[0].column_names
        return cls(
            num_lines=np.unique(places[:2], axis=1).shape[1],
            questions=questions.reshape(-1),
            keys=column(tables, "question_key"),
            golds=column(tables, "passage_id"),
            negatives=inner(tables, "hard_negative_ids") if is_train else np.zeros(0, np.int64),
            question_lengths=list_lengths(tables, "question_tokens")[first],
        )

    @property
    def num_questions(self) -> int:
        return len(self.question_lengths)

    def num_questions_with(self, passage_ids: np.ndarray) -> int:
        """Questions of which some gold is among the passages."""
        return len(np.unique(self.questions[np.isin(self.golds, passage_ids)]))

    def false_negative_share(self, batch_size: int) -> float:
        """Expected share of questions that meet their own passage as a negative in a random batch of rows.

        Exact: of the other N - 1 rows, c hold the passage; a batch draws B - 1 of them. The product is the chance that
        none of the c is drawn, C(N - 1 - c, B - 1) / C(N - 1, B - 1).
        """
        rows_of_passage = np.unique(self.golds, return_counts=True)[1]
        others, drawn = len(self.golds) - 1, min(batch_size, len(self.golds)) - 1
        not_met = [np.prod(np.clip(1 - drawn / (others - np.arange(c)), 0, 1)) for c in rows_of_passage - 1]
        return float(1 - np.dot(rows_of_passage, not_met) / len(self.golds))


def survey(tables: Mapping[str, list[pa.Table]], max_seq_length: int) -> list[str]:
    """Lines for a person, from the blocks of `train`, `eval`, maybe `test`, and `corpus`."""
    corpus_ids = column(tables["corpus"], "passage_id")
    distinct, first = np.unique(corpus_ids, return_index=True)
    splits = {name: Split.from_tables(tables[name]) for name in ("train", "eval", "test") if name in tables}
    train = splits["train"]
    lines = [f"{'':10}{'lines':>9}{'questions':>11}{'golds':>9}{'not in corpus':>15}{'wordings repeated':>19}"]
    for name, split in splits.items():
        golds = np.unique(split.golds)
        asked = np.unique(np.stack([split.keys, split.questions]), axis=1)[0]
        repeated = int((np.unique(asked, return_counts=True)[1] > 1).sum())
        missing = int((~np.isin(golds, distinct)).sum())
        lines.append(
            f"{name:10}{split.num_lines:9,}{split.num_questions:11,}{len(golds):9,}{missing:15,}{repeated:19,}"
        )
    lines.append(
        f"corpus: {len(distinct):,} passages, {len(corpus_ids) - len(distinct):,} duplicates left out; "
        f"{len(np.unique(train.negatives)):,} hard negatives in train"
    )
    for name in [name for name in splits if name != "train"]:
        shared, hard = (splits[name].num_questions_with(ids) for ids in (train.golds, train.negatives))
        lines.append(
            f"{name}: {shared:,} of {splits[name].num_questions:,} questions share a gold passage with train, "
            f"{hard:,} have a gold that is a hard negative in train"
        )
    shares = [f"{train.false_negative_share(size):.0%} in batches of {size:,}" for size in BATCH_SIZES]
    lines.append("train questions that would meet their own passage as a negative, which training masks:")
    lines.append(f"  {', '.join(shares)}")
    empty = sum(int(column(part, "num_empty_questions").sum()) for name, part in tables.items() if name != "corpus")
    lines += [f"empty questions, left out: {empty:,}"] if empty else []
    lines.append(f"{'tokens':16}" + "".join(f"{f'<={length}':>8}" for length in LENGTHS) + f"{'more':>8}{'cut':>8}")
    lengths = {f"{name} questions": split.question_lengths for name, split in splits.items()}
    lengths["corpus"] = list_lengths(tables["corpus"], "tokens")[first]
    for name, found in lengths.items():
        bins = np.searchsorted(LENGTHS, found)
        counts = np.bincount(bins, minlength=len(LENGTHS) + 1)
        cut = (found > max_seq_length).mean()
        lines.append(f"{name:16}" + "".join(f"{count:8,}" for count in counts) + f"{cut:8.1%}")
    lines.append(f"cut: the share that is longer than {max_seq_length} tokens (--max_seq_length)")
    return lines
