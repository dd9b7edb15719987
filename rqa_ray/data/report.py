"""Writes lines about the data: `brief` before training, `full` for jobs/prepare.py."""

from __future__ import annotations

from itertools import islice

import numpy as np

from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document, QARecord
from rqa_ray.data.survey import Survey
from rqa_ray.errors import InputError
from rqa_ray.places import shown, shown_files

LENGTHS = (32, 64, 128, 256, 512, 1024)  # upper ends of the columns of the histogram (tokens)
BATCH_SIZES = (64, 256, 1024)
SEARCHED_DOCUMENTS = 100_000  # documents that are searched for the text of a missing gold


def check_golds(survey: Survey, files: dict[str, list[str]], draws_negatives: bool) -> None:
    """Refuses data that cannot be evaluated or trained on.

    Raises:
        InputError: no gold passage of the evaluation is in the corpus; or all training questions have the same golds,
            and no batch draws hard negatives.
    """
    evaluated = survey.splits.get("eval")
    if evaluated and len(survey.missing["eval"]) == len(np.unique(evaluated.golds)):
        raise InputError(
            f"{shown_files(files['eval'])}: none of the gold passages of the eval questions is in the corpus, "
            f"{shown_files(files['corpus'])}; do the files belong together?" + _missing_one(survey, files, "eval")
        )
    if survey.has_equal_golds and not draws_negatives:
        raise InputError(
            f"{shown_files(files['train'])}: all {survey.train.num_questions:,} questions have the same gold "
            "passages, and a batch brings no hard negatives, so there is nothing to learn; add questions of other "
            "passages, or hard_neg_docs with --negatives_per_question 1"
        )


def brief(survey: Survey, files: dict[str, list[str]]) -> list[str]:
    """Returns lines about what the data has and what is odd, for the start of a run.

    `files` are the inputs by name.
    """
    counted = []
    for name, split in survey.splits.items():
        several = split.num_wordings_with_several_golds
        extra = f" ({several:,} wordings with several golds)" if several else ""
        counted.append(f"{name} {split.counts.num_questions:,} questions{extra}")
    duplicates = survey.num_documents - len(survey.passage_ids)
    lines = [f"data: {', '.join(counted)}; corpus {describe_corpus(len(survey.passage_ids), duplicates)}"]
    missing = {name: len(ids) for name, ids in survey.missing.items() if len(ids)}
    if missing:
        lines.append(
            "warning: gold passages that are missing from the corpus, so cannot be found: "
            + ", ".join(f"{name} {count:,}" for name, count in missing.items())
            + _missing_one(survey, files, next(iter(missing)))
        )
    lines += _known(survey)
    if survey.num_other_texts:
        count = f"{survey.num_other_texts:,}"
        lines.append(f"warning: passages of train that have another embedded text in the corpus: {count}")
    cut = [f"{name} {share:.1%}" for name, share in survey.shares_cut.items() if share]
    lines += [f"texts longer than max_seq_length, cut: {', '.join(cut)}"] if cut else []
    every = [split.counts for split in survey.splits.values()] + ([survey.streamed] if survey.streamed else [])
    lines += _empty(sum(counts.num_empty for counts in every))
    chats = sum(counts.num_chats for counts in every)
    return lines + ([f"note: chat_history is not used; {chats:,} rows have one"] if chats else [])


def _known(survey: Survey) -> list[str]:
    """Returns a line about the questions of eval and test whose gold is known from training, if there are any.

    A model can find such a gold by heart. Streamed training files are not looked through.
    """
    known = survey.splits["train"].golds if "train" in survey.splits else np.zeros(0, np.int64)
    return _questions_with(survey, known, "a gold of train")


def hard_negatives_that_answer(survey: Survey) -> list[str]:
    """Returns a line about the questions of eval and test with a gold that is a hard negative of train, if any.

    Such a passage may be a right negative of its training question, so it stays. Streamed training files are not
    looked through.
    """
    negatives = survey.splits["train"].negatives if "train" in survey.splits else np.zeros(0, np.int64)
    return _questions_with(survey, negatives, "a hard negative of train")


def _questions_with(survey: Survey, passage_ids: np.ndarray, what: str) -> list[str]:
    """Returns a line about the questions of eval and test with a gold among some passages, if there are any."""
    found = []
    for name, split in survey.splits.items():
        number = split.num_questions_with(passage_ids) if name != "train" else 0
        if number:
            found.append(f"{name} {number:,} ({number / split.counts.num_questions:.0%})")
    return [f"note: questions with a gold that is also {what}: {', '.join(found)}"] if found else []


def describe_corpus(num_passages: int, num_duplicates: int) -> str:
    """Returns how many passages the corpus has."""
    left_out = f" ({num_duplicates:,} duplicate{'s' * (num_duplicates > 1)} left out)" if num_duplicates else ""
    return f"{num_passages:,} passages{left_out}"


def _empty(count: int) -> list[str]:
    return [f"warning: empty questions, left out: {count:,}"] if count else []


def _missing_one(survey: Survey, files: dict[str, list[str]], split: str) -> str:
    """Returns a line with a gold that the corpus lacks, beside the passage of the corpus that has its text."""
    missing = set(survey.missing[split].tolist())
    questions = ((path, *found) for path in files.get(split, []) for found in read_records(path, "questions"))
    for path, line, record in questions:
        golds = record.gold_docs if isinstance(record, QARecord) else []
        for gold in (gold for gold in golds if gold.passage_id in missing):
            first = f"; the first, {shown(path)}:{line}, has source (or _id, or title) {gold.origin!r:.80}"
            corpus = (found for name in files.get("corpus", []) for _, found in read_records(name, "documents"))
            for document in islice(corpus, SEARCHED_DOCUMENTS):
                if isinstance(document, Document) and document.page_content == gold.page_content:
                    return f"{first}, the corpus has the same page_content with {document.origin!r:.80}"
            return first
    return ""


def full(survey: Survey, max_seq_length: int) -> list[str]:
    """Returns all that is known about prepared data; its texts were tokenized at full length."""
    train = survey.splits["train"]
    lines = [f"{'':10}{'lines':>9}{'questions':>11}{'golds':>9}{'not in corpus':>15}{'wordings repeated':>19}"]
    for name, split in survey.splits.items():
        lines.append(
            f"{name:10}{split.num_lines:9,}{split.counts.num_questions:11,}{len(np.unique(split.golds)):9,}"
            f"{len(survey.missing[name]):15,}{split.num_wordings_repeated:19,}"
        )
    lines.append(
        f"corpus: {len(survey.passage_ids):,} passages, {survey.num_documents - len(survey.passage_ids):,} duplicates "
        f"left out; {len(np.unique(train.negatives)):,} hard negatives in train"
    )
    lines += _known(survey) + hard_negatives_that_answer(survey)
    shares = [f"{train.false_negative_share(size):.0%} in batches of {size:,}" for size in BATCH_SIZES]
    lines.append("train questions that would meet their own passage as a negative, which training masks:")
    lines.append(f"  {', '.join(shares)}")
    lines += _empty(sum(split.counts.num_empty for split in survey.splits.values()))
    lines.append(f"{'tokens':16}" + "".join(f"{f'<={length}':>8}" for length in LENGTHS) + f"{'more':>8}{'cut':>8}")
    lengths = {f"{name} questions": split.question_lengths for name, split in survey.splits.items()}
    for name, found in (lengths | {"corpus": survey.passage_lengths}).items():
        counts = np.bincount(np.searchsorted(LENGTHS, found), minlength=len(LENGTHS) + 1)
        cut = (found > max_seq_length).mean()
        lines.append(f"{name:16}" + "".join(f"{count:8,}" for count in counts) + f"{cut:8.1%}")
    lines.append(f"cut: the share that is longer than {max_seq_length} tokens (--max_seq_length)")
    return lines
