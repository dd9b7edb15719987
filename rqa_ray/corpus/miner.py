"""Mines the questions of training pairs on a whole cluster, one slice of questions after the other.

For each slice, BM25 ranks the corpus. Then one pass over the embeddings finds the best passages of the dense model,
and scores the pairs that BM25 and the labels name. Then the rules of `mining.py` choose. No process holds all scores.

Shapes: q questions of a slice, K candidates of a ranking, N pairs.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.encoded import Encoded, embedding_folder
from rqa_ray.corpus.hybrid_teacher import HybridTeacher, Weigh
from rqa_ray.corpus.mined_files import MinedQuestions
from rqa_ray.corpus.mining import Candidates, MiningRules, PairScores, ScoredGolds, choose
from rqa_ray.corpus.mining_inputs import EvalSplit, Passages, TrainingPairs
from rqa_ray.corpus.model import Model
from rqa_ray.corpus.plan import CorpusPlan, rows_per_shard
from rqa_ray.corpus.shards import EMBEDDINGS_FOLDER, QUESTIONS_FOLDER, EmbeddingFolder, fingerprint
from rqa_ray.corpus.teacher import CrossEncoderFolder, CrossEncoderTeacher, teacher_fingerprint
from rqa_ray.corpus.text_tasks import bm25_rankings, build_bm25, saved_texts, signatures
from rqa_ray.corpus_settings import MineSettings
from rqa_ray.data.token_tables import make_tokenizer
from rqa_ray.settings import HYBRID, MINED_FROM

TEACHER_FOLDER = "teacher"  # folder of what a teacher needs, inside the output folder
QUESTIONS_AT_ONCE = 16_384  # questions of a slice; their candidates take 50 MB at a depth of 100


def mined_from(settings: MineSettings) -> list[str]:
    """Returns the names of the rankings that give candidates."""
    return [name for name in MINED_FROM if name in (settings.mine_from or MINED_FROM)]


class Part(NamedTuple):
    """A slice of the questions."""

    rows: slice
    shards: slice  # the shards that hold their embeddings


class Miner:
    """Mines the questions of training pairs from a corpus."""

    def __init__(
        self,
        settings: MineSettings,
        model: Model,
        teacher: Model | CrossEncoderFolder | None,
        workers: Workers,
        plan: CorpusPlan,
        pairs: TrainingPairs,
        of_eval: EvalSplit | None,
        weigh: Weigh,
    ) -> None:
        """Takes the questions that choose the weight of a hybrid, if there are any, and the function that chooses."""
        self.settings, self.teacher, self.workers = settings, teacher, workers
        self.plan, self.pairs = plan, pairs
        self.rules = MiningRules(settings.num_negatives, settings.mine_margin, settings.mine_depth, settings.seed)
        output = Path(settings.output_dir)
        self.texts = EmbeddingFolder(str(output / QUESTIONS_FOLDER))
        folder = embedding_folder(settings)
        self.encoded = Encoded(model, folder, self.texts, workers)
        self.passages = Passages(folder.location, len(plan.passage_ids), pairs.beside)
        self.of_eval, self.weigh = of_eval if settings.teacher == HYBRID else None, weigh
        self.hybrid: HybridTeacher | None = None
        self.embedding_teacher = self.cross_encoder = None
        if isinstance(teacher, Model):
            folder = EmbeddingFolder(str(output / TEACHER_FOLDER / EMBEDDINGS_FOLDER))
            self.embedding_teacher = Encoded(teacher, folder, self.texts, workers)
        elif teacher:
            texts = f"{plan.digest} {pairs.digest}"
            store = output / TEACHER_FOLDER
            self.cross_encoder = CrossEncoderTeacher(teacher, self.passages, texts, workers, store)

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the result."""
        spec = self.encoded.model.spec
        names = ("bf16", "num_negatives", "mine_margin", "mine_depth", "seed")
        refused = repr(sorted(self.pairs.refused)).encode()
        return {
            "model": fingerprint(spec.folder, spec.settings),
            "corpus": self.plan.digest,
            "questions": self.pairs.digest,
            "refused": hashlib.blake2b(refused, digest_size=16).hexdigest() if self.pairs.refused else None,
            "teacher": teacher_fingerprint(self.teacher) if self.teacher else self.settings.teacher,
            "precision": (self.encoded.folder.manifest() or {}).get("precision", "fp32"),
            "mine_from": mined_from(self.settings),
            **{name: getattr(self.settings, name) for name in names},
        }

    def encode(self, files: list[str]) -> None:
        """Encodes the corpus in `files`, the questions, and the golds that the corpus lacks, where they are not yet.

        Raises:
            InputError: `embeddings_path` has other embeddings.
        """
        overwrite = self.settings.overwrite_output_dir and not self.settings.embeddings_path
        for encoded in filter(None, (self.encoded, self.embedding_teacher)):
            tokenizer = make_tokenizer(encoded.model.spec)
            tokens = {"questions": tokenizer.questions(self.pairs.questions, self.pairs.instructions)}
            if self.of_eval:
                tokens["eval"] = tokenizer.questions(self.of_eval.questions, self.of_eval.instructions)
            if self.pairs.beside:
                tokens["golds"] = tokenizer.passages([gold.fmt_content for gold in self.pairs.beside])
            encoded.encode(files, self.plan, tokens, self.settings.bf16, overwrite)

    def mined(self) -> MinedQuestions:
        """Returns what is mined for all questions; call `encode` first."""
        location, names = self.encoded.folder.location, [shard.name for shard in self.encoded.folder.shards]
        beside = [gold.fmt_content for gold in self.pairs.beside]
        index = None
        if "bm25" in mined_from(self.settings) or self.settings.teacher == HYBRID:
            index = build_bm25(functools.partial(saved_texts, location, names))
        if index and self.settings.teacher == HYBRID:
            self.hybrid = HybridTeacher(self.encoded, index, beside, self.workers)
            print(f"teacher: {self._choose_weight(self.hybrid)}")
        number = min(self.workers.num_workers * self.workers.cpus, len(names))
        cuts = [len(names) * part // number for part in range(number + 1)]
        shares = [names[start:stop] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
        texts = signatures([functools.partial(saved_texts, location, share) for share in shares], beside)
        found = MinedQuestions()
        for part in self._parts():
            candidates, golds = self._candidates(part, index)
            keys = self.pairs.wordings.keys[part.rows]
            found.add(choose(self.rules, keys, candidates, golds, texts, self.pairs.refused), golds)
        return found

    def _choose_weight(self, hybrid: HybridTeacher) -> str:
        """Lets the eval questions choose the weight, if there are any; returns words for the user."""
        if self.of_eval:
            shards = self.encoded.shards["eval"]
            return hybrid.choose_weight(self.of_eval, shards, self.plan.passage_ids, self.weigh)
        rest = 1 - hybrid.weight
        return f"{hybrid.weight:g} of the model's z-scores and {rest:g} of BM25's; --eval_file would choose"

    def _parts(self) -> Iterator[Part]:
        number = len(self.pairs.questions)
        rows = rows_per_shard(number)
        step = max(1, QUESTIONS_AT_ONCE // rows)
        for first in range(0, -(-number // rows), step):
            yield Part(slice(first * rows, min((first + step) * rows, number)), slice(first, first + step))

    def _candidates(self, part: Part, index: ray.ObjectRef | None) -> tuple[Candidates, ScoredGolds]:
        """Returns the candidates and the golds of a slice, with the scores that decide."""
        questions, rules = self.pairs.questions[part.rows], self.rules
        offsets = self.pairs.wordings.golds.offsets[part.rows.start : part.rows.stop + 1]
        gold_positions = self.pairs.gold_positions[offsets[0] : offsets[-1]]
        bm25 = np.zeros((len(questions), 0), np.int64)
        if index is not None and "bm25" in mined_from(self.settings):
            bm25 = bm25_rankings(index, questions, rules.depth, self.workers)
        of_golds = np.repeat(np.arange(len(questions)), np.diff(offsets))
        of_bm25 = np.repeat(np.arange(len(questions)), bm25.shape[1])
        pairs = PairScores(np.concatenate([of_golds, of_bm25]), np.concatenate([gold_positions, bm25.ravel()]))
        depth = rules.depth if "dense" in mined_from(self.settings) else 0
        scores, dense = self._search(self.encoded, part, max(depth, 1), pairs)
        gold_scores, bm25_scores = np.split(pairs.scores, [len(of_golds)])
        candidates = Candidates.united((dense[:, :depth], scores[:, :depth]), (bm25, bm25_scores.reshape(bm25.shape)))
        if self.teacher or self.hybrid:
            rows = np.concatenate([of_golds, candidates.questions])
            positions = np.concatenate([gold_positions, candidates.positions])
            decides = self._ask_teacher(part, rows, positions, np.concatenate([gold_scores, candidates.scores]))
            gold_scores, candidates.scores = np.split(decides, [len(of_golds)])
        return candidates, ScoredGolds(gold_positions, gold_scores, offsets - offsets[0])

    def _search(self, encoded: Encoded, part: Part, k: int, pairs: PairScores) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and positions (q, K) of the best passages of a slice, and fills the scores of the pairs."""
        shards = encoded.shards["questions"][part.shards]
        scores, positions, _ = encoded.search(shards, k, pairs)
        if self.pairs.beside:
            golds = encoded.embeddings("golds")
            pairs.add(encoded.embeddings_of(shards), self.passages.number + torch.arange(len(golds)), golds)
        return scores, positions

    def _ask_teacher(self, part: Part, rows: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns (N,) the teacher's scores of pairs that the model has scored."""
        if self.hybrid:
            shards = self.encoded.shards["questions"][part.shards]
            found = self.hybrid.z_scores(self.pairs.questions[part.rows], shards, rows, positions, scores)
            return found.mixed(self.hybrid.weight)
        if self.cross_encoder:
            return self.cross_encoder.scores(self.pairs.questions[part.rows], rows, positions)
        assert self.embedding_teacher
        pairs = PairScores(rows, positions)
        self._search(self.embedding_teacher, part, 1, pairs)
        return pairs.scores
