"""Mines hard negatives for training questions on a whole cluster; restarts shard by shard.

1. Read the training pairs and the corpus, and encode all passages and distinct questions. Golds that the corpus lacks
   are encoded beside it, so that every question has a gold's score to compare with.
2. Mine the questions (`miner.py`).
3. Write the files, whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rqa_ray.cluster.connection import connect
from rqa_ray.cluster.workers import plan_workers
from rqa_ray.corpus.encode import plan_corpus
from rqa_ray.corpus.encoded import embedding_folder
from rqa_ray.corpus.hybrid_teacher import Weigh
from rqa_ray.corpus.mined_files import (
    MINING_FILE,
    NEGATIVES_FILE,
    SUSPECTS_FILE,
    TRAIN_FILE,
    MinedQuestions,
    MiningReport,
    suspects_of,
    write_negatives,
    write_suspects,
    write_train,
)
from rqa_ray.corpus.miner import Miner, mined_from
from rqa_ray.corpus.mining_inputs import EvalSplit, TrainingPairs
from rqa_ray.corpus.model import find_model
from rqa_ray.corpus.teacher import find_teacher
from rqa_ray.corpus_settings import MineSettings
from rqa_ray.data.readers import read_inputs
from rqa_ray.data.records import find_inputs, find_labels, good_records
from rqa_ray.data.schema import QARecord
from rqa_ray.errors import InputError, need_extra
from rqa_ray.job_output import JobResult
from rqa_ray.places import check_local_folder, refuse_among_inputs, refuse_files_of_others, staged
from rqa_ray.settings import HYBRID
from rqa_ray.texts import duration, html_table

INPUTS = {"corpus": "document_path", "asked": "train_file", "eval": "eval_file", "test": "test_file"}
LACKING = "golds that the corpus lacks, encoded beside it and no candidates"
IDENTITY = {
    "model": "model, or other settings of it",
    "corpus": "corpus",
    "questions": "training questions or golds",
    "refused": "refused suspects",
    "teacher": "--teacher",
    "precision": "precision of the embeddings",
    "bf16": "--bf16",
    "num_negatives": "--num_negatives",
    "mine_margin": "--mine_margin",
    "mine_from": "--mine_from",
    "mine_depth": "--mine_depth",
    "seed": "--seed",
    "held_out": "eval or test questions",
}


@dataclass
class MineResult(JobResult):
    """What `mine` found; the files are in output_dir."""

    output_dir: str
    mining: MiningReport
    seconds: float = 0.0  # 0 where an earlier run has mined it
    encoding_seconds: float = 0.0

    def describe(self) -> str:
        """Returns the summary that the job prints."""
        counts, settings = self.mining.counts, self.mining.identity
        lines = [
            f"{counts['questions']:,} questions, {counts['candidates']:,} candidates: "
            f"{counts['negative']:,} negatives",
            f"left out: {counts['gold']:,} golds, {counts['same_text']:,} with the text of a gold, "
            f"{counts['near_duplicate']:,} that hold nearly all of a gold, {counts['suspect']:,} suspects "
            f"(from {settings['mine_margin']:g} of the lowest gold's score on)",
        ]
        few = counts["questions_with_fewer"]
        lines += [f"questions with fewer than {settings['num_negatives']} negatives: {few:,}"] if few else []
        for split, leaks in self.mining.leaks.items():
            met = f"{leaks['with_a_mined_gold']:,} of {leaks['questions']:,} {split} questions"
            lines.append(f"leaks: the golds of {met} are among the negatives")
        if self.seconds:
            lines.append(f"{duration(self.seconds)}, of which encoding {duration(self.encoding_seconds)}")
        lines.append(
            f"written: {Path(self.output_dir) / TRAIN_FILE}, {NEGATIVES_FILE}, {SUSPECTS_FILE}, {MINING_FILE}"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(["mined", "number"], [*self.mining.counts.items()], self.output_dir)


def mine(settings: MineSettings, weigh: Weigh) -> MineResult:
    """Finds hard negatives for all training questions, and writes them to output_dir.

    `weigh` chooses the weight of a hybrid teacher (`evaluation/hybrid_weight.py`).

    Raises:
        InputError: what the user gave is wrong; nothing was written.
    """
    started = time.perf_counter()
    check_local_folder(settings.output_dir)
    given = {name: (flag, getattr(settings, flag)) for name, flag in INPUTS.items()}
    outputs = {flag: getattr(settings, flag) for flag in ("output_dir", "embeddings_path")}
    inputs = find_inputs(given, skip_bad=False, outputs=outputs)
    labels = find_labels(settings.accepted_labels, inputs)
    suspects = str(Path(settings.output_dir) / SUSPECTS_FILE)  # a person's decisions in it would be replaced
    refuse_among_inputs("output_dir", suspects, [], settings.accepted_labels or [])
    embedding_folder(settings).check_own()
    output = Path(settings.output_dir)
    earlier = MiningReport.load(output)
    if not earlier and not settings.overwrite_output_dir:
        refuse_files_of_others(output, [TRAIN_FILE, NEGATIVES_FILE, SUSPECTS_FILE])
    model = find_model(settings)
    is_hybrid = settings.teacher == HYBRID
    teacher = find_teacher(settings.teacher) if settings.teacher and not is_hybrid else None
    if "bm25" in mined_from(settings):
        need_extra("--mine_from bm25", "bm25", "bm25s")
    if is_hybrid:
        need_extra(f"--teacher {HYBRID}", "bm25", "bm25s")
    cluster, workers = connect(), plan_workers(settings.num_workers, settings.cpus_per_worker, settings.use_cpu)
    print(f"Ray: {cluster}; {workers.describe()}\n{model.describe()}")
    plan = plan_corpus(inputs["corpus"])
    blocks = read_inputs({"asked": inputs["asked"]}, model.spec, labels=labels)["asked"]
    pairs = TrainingPairs(blocks.tables(), plan.passage_ids, labels.refused)
    splits: dict[str, EvalSplit] = {}
    splits |= {split: EvalSplit(inputs[split], labels) for split in ("eval", "test") if split in inputs}
    print(f"data: {len(pairs.questions):,} questions in {pairs.num_pairs:,} training pairs; {plan.describe()}")
    asked = set(pairs.wordings.keys.tolist()).union(*(part.labelled for part in splits.values()))
    for line in labels.describe(asked):
        print(line)
    for number, what in ((pairs.num_empty, "empty questions, left out"), (len(pairs.beside), LACKING)):
        if number:
            print(f"note: {what}: {number:,}")
    miner = Miner(settings, model, teacher, workers, plan, pairs, splits.get("eval"), weigh)
    identity = miner.identity()
    identity["held_out"] = {split: part.digest for split, part in splits.items()}
    if earlier and not settings.overwrite_output_dir:
        differ = [what for name, what in IDENTITY.items() if earlier.identity.get(name) != identity[name]]
        if differ:
            raise InputError(
                f"--output_dir {output}: was mined with another {', another '.join(differ)}; choose another folder, "
                "or replace it with --overwrite_output_dir"
            )
        print("mined already; nothing to do")
        return MineResult(settings.output_dir, earlier, files=_files(output))
    encoding = time.perf_counter()
    miner.encode(inputs["corpus"])
    encoding = time.perf_counter() - encoding
    found = miner.mined()
    records = good_records(inputs["asked"], "questions", labels=labels)
    report = _write(output, records, miner, found, splits, identity)
    seconds = time.perf_counter() - started
    return MineResult(settings.output_dir, report, seconds, encoding, files=_files(output))


def _write(
    output: Path,
    records: Iterable[QARecord],
    miner: Miner,
    found: MinedQuestions,
    splits: Mapping[str, EvalSplit],
    identity: dict[str, Any],
) -> MiningReport:
    """Writes all files into the output folder, whole or not at all; the report comes last, and is returned."""
    pairs, passages, negatives = miner.pairs, miner.passages, found.negatives()
    with staged(output, last=MINING_FILE) as staging:
        replaced = write_train(staging / TRAIN_FILE, records, pairs, found, passages)
        write_negatives(staging / NEGATIVES_FILE, pairs, negatives)
        counts = {
            "pairs": pairs.num_pairs,
            "questions": len(pairs.questions),
            "golds_beside_the_corpus": len(pairs.beside),
            **found.counts,
            "questions_with_fewer": int((np.diff(negatives.offsets) < miner.rules.num_negatives).sum()),
            "suspects_written": write_suspects(staging / SUSPECTS_FILE, suspects_of(pairs, found, passages)),
        }
        leaks = {split: part.leaks(negatives, pairs.ids) for split, part in splits.items()}
        weight = miner.hybrid.weight if miner.hybrid else None
        report = MiningReport(identity, counts, found.levels(), leaks, weight)
        report.save(staging)
        (output / MINING_FILE).unlink(missing_ok=True)  # an earlier report does not fit the new files
    if replaced:
        print(f"note: hard negatives of the input, replaced by those that were mined: {replaced:,}")
    return report


def _files(output: Path) -> list[str]:
    """Returns the paths of the files in output_dir."""
    return [str(output / name) for name in (TRAIN_FILE, NEGATIVES_FILE, SUSPECTS_FILE, MINING_FILE)]
