"""Writes a trained model for other runtimes, and measures each form against the original; jobs/export.py.

Everything runs on the CPU of one machine, without Ray.

Shapes: Q questions, N passages, D dimensions, K passages found for a question.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from rqa_ray.corpus.model import Model, find_model
from rqa_ray.corpus.topk import search_blocks
from rqa_ray.corpus_settings import ExportSettings
from rqa_ray.data.distinct import read_distinct
from rqa_ray.data.labels import Labels
from rqa_ray.data.records import find_inputs, find_labels, good_records
from rqa_ray.data.rows import Questions
from rqa_ray.data.token_tables import make_tokenizer, question_rows, to_table
from rqa_ray.errors import InputError, first_line, need_extra
from rqa_ray.evaluation.confidence import Difference, paired_difference
from rqa_ray.evaluation.metrics import HEADLINES, LABELS, question_metrics
from rqa_ray.evaluation.predictions import AskedQuestions
from rqa_ray.export.compact import KINDS
from rqa_ray.export.hub import Upload
from rqa_ray.export.runtimes import ONNX_FILE, RUNTIMES, Exported, Runtime, write_onnx
from rqa_ray.job_output import JobResult
from rqa_ray.places import check_local_folder, shown_files, staged, write_json
from rqa_ray.progress import Progress, ProgressLine
from rqa_ray.retriever.embedder import Embedder
from rqa_ray.retriever.encoder import Encoder
from rqa_ray.retriever.folder import save_encoder

REPORT_FILE = "export.json"
KEPT_FILES = ("README.md", "hybrid.json")  # of a trained model: its card, and the weight of its hybrid
K = 100
PASSAGES_OF_A_BLOCK = 16_000
MEGABYTE = 1e6
HEADINGS = ("", *HEADLINES, "passages/s", "MB", "cosine")


@dataclass
class Form:
    """One form of the model or of its embeddings, as it was measured."""

    name: str
    metrics: dict[str, float]  # by the names of HEADLINES
    differences: dict[str, Difference]  # what the metrics gained over the original
    megabytes: float = 0.0  # of the file, or of the embeddings of the corpus
    passages_per_second: float | None = None  # None for a form of embeddings
    cosine: float | None = None  # mean cosine of the passages' embeddings to those of the original
    file: str | None = None  # in output_dir

    def warnings(self) -> list[str]:
        """Returns a line for each metric that lost more than chance explains."""
        return [
            f"warning: {self.name} against the original, {label}: {change.describe()}"
            for label, change in self.differences.items()
            if change.is_beyond_noise and change.mean < 0
        ]

    def cells(self) -> list[str]:
        """Returns the cells of a row of the table."""
        speed = "" if self.passages_per_second is None else f"{self.passages_per_second:,.1f}"
        cosine = "" if self.cosine is None else f"{self.cosine:.4f}"
        return [
            self.name,
            *(f"{self.metrics[name]:.3f}" for name in HEADLINES),
            speed,
            f"{self.megabytes:,.0f}" if self.megabytes >= 100 else f"{self.megabytes:.3g}",
            cosine,
        ]


@dataclass
class ExportResult(JobResult):
    """The result of an export: what was written, and how good it is."""

    output_dir: str
    num_questions: int
    num_passages: int
    forms: list[Form]  # the original first
    notes: list[str]  # what was not written, and which forms lost more than chance
    address: str | None = None  # on the hub

    def describe(self) -> str:
        """Returns lines for a person."""
        head = f"{self.num_questions:,} questions, {self.num_passages:,} passages"
        rows = [[head, *HEADINGS[1:]], *(form.cells() for form in self.forms)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        others = ", ".join(form.file for form in self.forms if form.file)
        written = [f"written: {Path(self.output_dir) / REPORT_FILE}, {others or 'no other runtime'}"]
        return "\n".join([*lines, *self.notes, *written, *([f"uploaded: {self.address}"] if self.address else [])])


class Check:
    """Questions and passages, on which every form of the model is measured."""

    def __init__(self, model: Model, questions: list[str], documents: list[str], labels: Labels) -> None:
        tokenizer = make_tokenizer(model.spec)
        asked = (record for record in good_records(questions, "questions", labels=labels) if record.questions)
        records = list(enumerate(asked))
        if not records:
            raise InputError(f"{questions[0]}: all its questions are empty")
        tables = [to_table([row | {"file": 0} for row in question_rows(records, tokenizer)], "questions")]
        passages = list(read_distinct(documents))
        self.asked = AskedQuestions(tables)
        self.question_rows = Questions.from_tables(tables).tokens
        self.passage_rows = tokenizer.passages([passage.fmt_content for passage in passages])
        self.passage_ids = np.array([passage.passage_id for passage in passages])
        known = set(self.passage_ids.tolist())
        self.num_lost = sum(not known.issuperset(golds) for golds in self.asked.gold_ids)
        if all(known.isdisjoint(golds) for golds in self.asked.gold_ids):
            raise InputError(
                f"{shown_files(questions)}: none of its gold passages is in {shown_files(documents)}; "
                "do they belong together?"
            )
        self._base: dict[str, np.ndarray] = {}  # (Q,) of the original, by the names of HEADLINES
        self._original = torch.empty(0)  # (N, D) of the original

    def embedder(self, name: str, embedder: Embedder, megabytes: float, file: str | None = None) -> Form:
        """Measures an embedder; the first one is the original."""
        questions = embedder.rows(self.question_rows)  # also warms the runtime up
        line, progress = ProgressLine(), Progress(f"{name}, passages", 0, len(self.passage_rows))

        def on_batch(num_rows: int) -> None:
            progress.done += num_rows
            line.draw(progress)

        started = time.perf_counter()
        passages = embedder.rows(self.passage_rows, on_batch)
        seconds = time.perf_counter() - started
        line.clear()
        if not self._base:
            self.embeddings, self._original = (questions, passages), passages
        form = self._form(name, questions, passages)
        form.megabytes, form.file, form.passages_per_second = megabytes, file, len(passages) / seconds
        form.cosine = float(torch.nn.functional.cosine_similarity(passages, self._original).mean())
        return form

    def compact(self) -> Iterator[Form]:
        """Measures the embeddings of the original in fewer bits."""
        for name, (change, num_bytes) in KINDS.items():
            questions, passages = change(*self.embeddings)
            form = self._form(name, questions, passages)
            form.megabytes = passages.numel() * num_bytes / MEGABYTE
            yield form

    def _form(self, name: str, questions: torch.Tensor, passages: torch.Tensor) -> Form:
        blocks = zip(
            torch.arange(len(passages)).split(PASSAGES_OF_A_BLOCK), passages.split(PASSAGES_OF_A_BLOCK), strict=True
        )
        positions = search_blocks(questions, blocks, min(K, len(passages))).result()[1].numpy()
        every = question_metrics(self.passage_ids[positions], self.asked.gold_ids)
        values = {label: every[LABELS[label]] for label in HEADLINES}
        self._base = self._base or values
        clusters = self.asked.clusters.labels
        changes = {label: paired_difference(self._base[label], values[label], clusters) for label in HEADLINES}
        return Form(name, {label: float(value.mean()) for label, value in values.items()}, changes)


def export(settings: ExportSettings) -> ExportResult:
    """Writes a model for other runtimes, measures every form of it, and uploads the folder if this is asked for.

    Raises:
        InputError: the user's input is wrong, a package that a flag asks for is missing, or the model cannot be
            written for a runtime that a flag asks for: nothing was written. Or the upload failed: the files are there.
    """
    check_local_folder(settings.output_dir)
    output = Path(settings.output_dir)
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"--output_dir {output}: has files; choose another folder, or delete this one")
    given = {
        "corpus": ("document_path", settings.document_path),
        "test": ("eval_data_path", settings.eval_data_path),
    }
    inputs = find_inputs(given, skip_bad=False, outputs={"output_dir": settings.output_dir})
    labels = find_labels(None, inputs)
    runtimes, notes = chosen_runtimes(settings.runtimes)
    model = find_model(settings)
    upload = Upload(settings.push_to_hub) if settings.push_to_hub else None
    print(model.describe(), file=sys.stderr)
    check = Check(model, inputs["test"], inputs["corpus"], labels)
    if check.num_lost:
        notes.append(f"warning: {check.num_lost:,} questions have a gold that is missing from the corpus")
    embedder = Embedder.load(model.spec, device="cpu")
    encoder = embedder.encoder
    size = sum(value.numel() * value.element_size() for value in encoder.parameters()) / MEGABYTE
    forms = [check.embedder("original, fp32", embedder, size)]
    in_bf16 = Embedder.load(model.spec, device="cpu", bf16=True)
    forms.append(check.embedder("original, bf16", in_bf16, size / 2))
    with staged(output) as staging:
        save_encoder(encoder, str(staging))
        for name in KEPT_FILES:
            if (Path(model.spec.folder) / name).is_file():
                shutil.copy(Path(model.spec.folder) / name, staging)
        for runtime in runtimes:
            try:
                forms += _in_runtime(runtime, encoder, check, staging)
            except InputError as error:
                if settings.runtimes:
                    raise
                notes.append(f"not written: {error}")
                for file in runtime.files.values():
                    (staging / file).unlink(missing_ok=True)
        if "onnx" not in (runtime.name for runtime in runtimes):
            shutil.rmtree((staging / ONNX_FILE).parent, ignore_errors=True)
        forms += check.compact()
        num_questions, num_passages = len(check.asked.questions), len(check.passage_ids)
        name = Path(model.name).name if Path(model.name).is_dir() else model.name  # the report may be uploaded
        about = {"model": name, "questions": num_questions, "passages": num_passages}
        write_json(staging / REPORT_FILE, {**about, "forms": [asdict(form) for form in forms]})
        names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
    notes += [line for form in forms for line in form.warnings()]
    address = upload.push(output) if upload else None
    files = [str(output / name) for name in names]
    return ExportResult(settings.output_dir, num_questions, num_passages, forms, notes, address, files=files)


def _in_runtime(runtime: Runtime, encoder: Encoder, check: Check, staging: Path) -> list[Form]:
    """Writes and measures the files of a runtime, which takes the place of the encoder's transformer.

    Raises:
        InputError: the files cannot be written or opened.
    """
    transformer, packs = encoder.transformer, encoder.can_pack
    try:
        if not (staging / ONNX_FILE).exists():
            write_onnx(encoder, staging)
        runtime.write(staging)
        forwards = {file: runtime.open(staging / file) for file in runtime.files.values()}
    except InputError:
        raise
    except Exception as error:  # of three packages, and of the operating system
        raise InputError(f"--runtimes {runtime.name}: {first_line(error)}") from None
    forms = []
    for name, file in runtime.files.items():
        encoder.model[0].model, encoder.can_pack = Exported(forwards[file], transformer.config), False
        forms.append(check.embedder(name, Embedder(encoder), _megabytes(staging / file), file))
    encoder.model[0].model, encoder.can_pack = transformer, packs
    return forms


def chosen_runtimes(names: list[str] | None) -> tuple[list[Runtime], list[str]]:
    """Returns the runtimes that were asked for, else those whose packages are installed; and lines about the others.

    Raises:
        InputError: a package of a runtime that was asked for is missing.
    """
    chosen, notes = [], []
    for name, runtime in RUNTIMES.items():
        if names is not None and name not in names:
            continue
        try:
            for module in runtime.modules:
                need_extra(f"--runtimes {name}", name, module)
            chosen.append(runtime)
        except InputError as error:
            if names is not None:
                raise
            notes.append(f"not written: {error}")
    return chosen, notes


def _megabytes(file: Path) -> float:
    """Returns the size of a file together with the file of its weights, if the weights are apart."""
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.stem}.*")) / MEGABYTE
