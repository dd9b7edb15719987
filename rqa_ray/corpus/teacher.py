"""Finds the teacher, whose scores decide in place of the model's, and scores pairs by it if it is a cross-encoder.

Shapes: N pairs of a question and a passage.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from ray.util import ActorPool

from rqa_ray.cluster.model_copies import bring_model, share_model
from rqa_ray.cluster.workers import Workers
from rqa_ray.corpus.mining_inputs import Passages
from rqa_ray.corpus.model import Model
from rqa_ray.corpus.shards import fingerprint
from rqa_ray.errors import InputError, first_line
from rqa_ray.places import read_any_json, write_whole
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.find_model import find_model_folder
from rqa_ray.retriever.tokenizer import check_model
from rqa_ray.retriever.weights import check_weights
from rqa_ray.texts import as_utf8

PAIRS_PER_FILE = 4_096  # pairs whose scores are saved together; a kill loses at most one file for each worker


@dataclass(frozen=True)
class CrossEncoderFolder:
    """A model that reads a question and a passage together and gives one score."""

    name: str
    folder: str


def find_teacher(name: str) -> Model | CrossEncoderFolder:
    """Returns the teacher in a folder, a package or on the hub; its architecture says of which kind it is.

    Raises:
        InputError: there is no such model, or it cannot score pairs.
    """
    folder = find_model_folder(name)
    config = read_any_json(Path(folder) / "config.json", {})
    if any(kind.endswith("ForSequenceClassification") for kind in config.get("architectures") or []):
        labels = len(config.get("id2label") or [0, 1])  # as transformers counts them
        if labels != 1:
            raise InputError(f"--teacher {name}: gives {labels} scores a pair; a cross-encoder with one is needed")
        return CrossEncoderFolder(name, folder)
    spec = ModelSpec(folder, read_settings(folder))
    check_model(spec)
    check_weights(spec)
    return Model(name, spec)


def teacher_fingerprint(teacher: Model | CrossEncoderFolder) -> str:
    """Returns `shards.fingerprint` of the teacher."""
    if isinstance(teacher, Model):
        return fingerprint(teacher.spec.folder, teacher.spec.settings)
    return fingerprint(teacher.folder, None)


class CrossEncoderTeacher:
    """Scores pairs by a cross-encoder on all workers, and saves the scores for a run that goes on."""

    def __init__(
        self, teacher: CrossEncoderFolder, passages: Passages, texts: str, workers: Workers, store: Path
    ) -> None:
        """Takes what says that questions and passages are the same (`texts`), and the folder of the scores."""
        self.teacher, self.passages, self.workers, self.store = teacher, passages, workers, store
        self.identity = f"{teacher_fingerprint(teacher)} {texts}"

    def scores(self, questions: Sequence[str], rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the fp32 scores (N,) of the questions `rows` (N,) with the passages at positions (N,).

        Raises:
            InputError: the model cannot be loaded.
        """
        parts = [slice(start, start + PAIRS_PER_FILE) for start in range(0, len(rows), PAIRS_PER_FILE)]
        files = [self._file(questions, rows[part], positions[part]) for part in parts]
        progress, line = Progress("teacher, pairs", 0, len(rows)), ProgressLine()
        missing = []
        for file, part in zip(files, parts, strict=True):
            if file.is_file():
                progress.done += len(rows[part])
            else:
                missing.append((file, [questions[row] for row in rows[part]], positions[part]))
        self.store.mkdir(parents=True, exist_ok=True)
        number = min(self.workers.num_workers, len(missing))  # actors for this call; other tasks need their CPUs
        fixed = (self.teacher.folder, share_model(self.teacher.folder), self.passages, self.workers)
        actor = ray.remote(**self.workers.of_a_task)(_Scorer)
        pool = ActorPool([actor.remote(*fixed) for _ in range(number)])
        for path, found in pool.map_unordered(lambda actor, item: actor.score.remote(*item), missing):
            if isinstance(found, str):
                raise InputError(f"--teacher {self.teacher.name}: cannot be used: {found}")
            content = io.BytesIO()
            np.save(content, found)
            write_whole(path, content.getvalue())
            progress.done += len(found)
            line.draw(progress)
        line.clear()
        return np.concatenate([np.zeros(0, np.float32), *(np.load(file) for file in files)])

    def _file(self, questions: Sequence[str], rows: np.ndarray, positions: np.ndarray) -> Path:
        asked = [questions[row].encode("utf-8", "surrogatepass") for row in np.unique(rows)]
        content = b"|".join([self.identity.encode(), *asked, rows.tobytes(), positions.tobytes()])
        return self.store / f"scores-{hashlib.blake2b(content, digest_size=8).hexdigest()}.npy"


class _Scorer:
    """The actor that scores pairs."""

    def __init__(self, folder: str, copy: ray.ObjectRef | None, passages: Passages, workers: Workers) -> None:
        torch.set_num_threads(workers.cpus)
        bring_model(folder, copy)
        self.passages, self.problem = passages, ""
        try:
            from sentence_transformers import CrossEncoder

            device = "cuda" if workers.use_gpu else "cpu"
            self.model = CrossEncoder(folder, device=device, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # transformers raises many kinds; Ray would print a page about an actor that raises
            self.problem = first_line(error)

    def score(self, path: Path, questions: list[str], positions: np.ndarray) -> tuple[Path, np.ndarray | str]:
        """Returns the path, and the scores of the pairs or a line that says what is wrong."""
        if self.problem:
            return path, self.problem
        found = self.passages.documents(positions)
        texts = [as_utf8(found[place].fmt_content) for place in positions.tolist()]
        pairs = [*zip(map(as_utf8, questions), texts, strict=True)]
        return path, self.model.predict(pairs, show_progress_bar=False).astype(np.float32)
