"""What is odd about the data, said once, before training; from the small columns of the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from rqa_ray.data.columns import column
from rqa_ray.errors import InputError


class Tables(Protocol):
    """One input's blocks; `readers.Blocks` is one."""

    def tables(self, *columns: str) -> list[pa.Table]:
        """Some columns of the blocks."""
        ...


def data_report(blocks: Mapping[str, Tables], num_empty: int = 0, num_chats: int = 0) -> list[str]:
    """Lines for the user. Of a `train` that is streamed the empty questions and chats are counted elsewhere.

    Raises:
        InputError: no gold passage of the evaluation is in the corpus.
    """
    corpus_ids = column(blocks["corpus"].tables("passage_id"), "passage_id")
    distinct = np.unique(corpus_ids)
    duplicates = len(corpus_ids) - len(distinct)
    lines = []
    counted: dict[str, str] = {}
    missing = []
    for split in [name for name in blocks if name != "corpus"]:
        tables = blocks[split].tables(
            "file",
            "line",
            "question_item",
            "question_key",
            "passage_id",
            "has_chat_history",
            "num_empty_questions",
        )
        ids, keys = column(tables, "passage_id"), column(tables, "question_key")
        asked = np.unique(
            np.stack([column(tables, name) for name in ("file", "line", "question_item")]), axis=1
        ).shape[1]
        pairs = np.unique(np.stack([keys, ids]), axis=1)
        several = int(np.sum(np.unique(pairs[0], return_counts=True)[1] > 1))
        extra = f" ({several:,} wordings with several golds)" if several else ""
        counted[split] = f"{split} {asked:,} questions{extra}"
        golds = np.unique(ids)
        lost = int(np.sum(~np.isin(golds, distinct)))
        if split == "eval" and lost == len(golds):
            raise InputError(
                "--eval_file: no gold passage of it is in full_dataset_file_path; are they of one data set?"
            )
        missing += [f"{split} {lost:,}"] if lost else []
        num_chats += int(sum(np.sum(table["has_chat_history"].to_numpy()) for table in tables))
        num_empty += int(column(tables, "num_empty_questions").sum())
    lines.append(
        f"data: {', '.join(counted.values())}; corpus {len(distinct):,} passages"
        + (f" ({duplicates:,} duplicate{'s' * (duplicates > 1)} left out)" if duplicates else "")
    )
    if missing:
        lines.append(
            f"warning: gold passages that are missing from the corpus, so cannot be found: {', '.join(missing)}"
        )
    cut = {name: _truncated(part) for name, part in blocks.items()}
    if any(truncated for truncated, _ in cut.values()):
        shares = ", ".join(f"{name} {truncated / total:.1%}" for name, (truncated, total) in cut.items() if truncated)
        lines.append(f"texts longer than max_seq_length, cut: {shares}")
    if num_empty:
        lines.append(f"warning: empty questions, left out: {num_empty:,}")
    if num_chats:
        lines.append(f"note: chat_history is not used; {num_chats:,} rows have one")
    return lines


def has_negatives(train: Tables) -> bool:
    """Whether any training row brings hard negatives."""
    return any(len(chunk.values) for table in train.tables("hard_negative_ids") for chunk in table[0].chunks)


def _truncated(part: Tables) -> tuple[int, int]:
    tables = part.tables("num_truncated", "num_texts")
    return int(column(tables, "num_truncated").sum()), int(column(tables, "num_texts").sum())
