"""Reads what mining needs to know about texts, once for all rounds of a run and all trials of a search.

The training files are read again, because the tokenized rows of a run have no texts.

N pairs of a question and a gold, in the order of the input.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.bm25 import Bm25
from rqa_ray.corpus.hybrid_pairs import WordScores
from rqa_ray.corpus.mining import Wordings
from rqa_ray.corpus.near_duplicates import Signatures
from rqa_ray.corpus.plan import Range, group_ranges
from rqa_ray.corpus.text_tasks import bm25_rankings, build_bm25, signatures, word_scores
from rqa_ray.data.labels import Labels
from rqa_ray.data.readers import Blocks, fetch_tables
from rqa_ray.data.records import read_records
from rqa_ray.data.schema import Document, QARecord, question_key
from rqa_ray.data.share import ALL, Share
from rqa_ray.evaluation.predictions import AskedQuestions, Documents
from rqa_ray.places import shown
from rqa_ray.settings import HYBRID, MINED_FROM, MiningSettings
from rqa_ray.training.mining_pass import MiningTexts


def read_mining_texts(
    train_files: list[str],
    labels: Labels,
    blocks: dict[str, Blocks],
    num_pairs: int,
    settings: MiningSettings,
    corpus: ClusterTexts,
    share: Share = ALL,
) -> MiningTexts:
    """Reads the questions of training files, ranks passages for them by BM25, and makes signatures of all passages.

    The questions are those in the share. `blocks` are those of the corpus and of the eval questions, which weigh a
    hybrid. Passages are in the order of `rows.Corpus`.

    Raises:
        RuntimeError: the files have another number of pairs than when they were first read.
    """
    passage_ids = Documents(blocks["corpus"].tables()).passage_ids
    given = (ray.put(labels), share, passage_ids)
    parts = [_read_pairs.remote(ranges, *given) for ranges in group_ranges(train_files)]
    keys, ids = [], []
    texts: dict[int, str] = {}
    missing: dict[int, str] = {}
    for part in ray.get(parts):
        keys.append(part[0])
        ids.append(part[1])
        texts = part[2] | texts
        missing = part[3] | missing
    wordings = Wordings.of(np.concatenate(keys), np.concatenate(ids))
    if len(wordings.of_pairs) != num_pairs:
        raise RuntimeError(f"{shown(train_files[0])}: it, or a file behind it, changed while it was read")
    depth = settings.mine_depth if "bm25" in (settings.mine_from or MINED_FROM) else 0
    of_eval = AskedQuestions(blocks["eval"].tables()).questions if settings.teacher == HYBRID else None
    found = MiningTexts.of(wordings, passage_ids, texts, missing, corpus, depth, of_eval)
    return replace(found, refused=labels.refused)


@dataclass
class ClusterTexts:
    """The texts of a corpus, which tasks on the cluster read, index and rank: `mining_pass.CorpusTexts`."""

    refs: Sequence[Any]  # references to the tables of the corpus
    number: int  # of passages
    workers: Workers

    @functools.cached_property
    def index(self) -> ray.ObjectRef:
        """BM25's index, made when it is first asked for; Ray's object store keeps it as long as this object."""
        return build_bm25(functools.partial(corpus_texts, self.refs, 0, self.number))

    def read_index(self) -> Bm25:
        """Returns the index, whose arrays are views of the object store."""
        return ray.get(self.index)

    def signatures(self) -> Signatures:
        tasks = min(self.workers.num_workers * self.workers.cpus, self.number)
        cuts = [self.number * part // tasks for part in range(tasks + 1)]
        shares = zip(cuts[:-1], cuts[1:], strict=True)
        return signatures([functools.partial(corpus_texts, self.refs, *share) for share in shares])

    def rank(self, questions: Sequence[str], k: int) -> np.ndarray:
        return bm25_rankings(self.index, questions, k, self.workers)

    def word_scores(self, questions: Sequence[str], beside: Sequence[str]) -> WordScores:
        return word_scores(self.index, questions, beside, self.workers)


def corpus_texts(refs: Sequence[Any], start: int, stop: int) -> Iterator[str]:
    """Yields the texts of the passages at positions from `start` to `stop`, in a Ray task."""
    documents = Documents(fetch_tables(list(refs)))
    return (Document(**documents.document(place)).fmt_content for place in range(start, stop))


@ray.remote
def _read_pairs(
    ranges: list[Range], labels: Labels, share: Share, corpus_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[int, str], dict[int, str]]:
    """Returns of all pairs the question keys (N,) and the golds (N,), and texts: questions by key, golds by id.

    Of the golds only those that the corpus lacks.
    """
    keys, ids = [], []
    texts: dict[int, str] = {}
    golds: dict[int, str] = {}
    for path, start, end in ranges:
        for _, record in read_records(path, "questions", start, end, labels):
            # bad records were reported when the files were first read
            if isinstance(record, QARecord) and share.has(record):
                for question in record.questions:
                    key = question_key(question, record.instruction)
                    texts.setdefault(key, question)
                    keys += [key] * len(record.gold_docs)
                    ids += [gold.passage_id for gold in record.gold_docs]
                for gold in record.gold_docs if record.questions else []:
                    if gold.passage_id not in golds:
                        golds[gold.passage_id] = gold.fmt_content
    missing = np.setdiff1d(np.array(ids, np.int64), corpus_ids)
    return np.array(keys, np.int64), np.array(ids, np.int64), texts, {key: golds[key] for key in missing.tolist()}
