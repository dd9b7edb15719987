"""One training run of `jobs/benchmark.py quality`, in this process: this project's recipes, and a peer's.

All recipes encode the same number of texts in training.

P passages, D dimensions.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rqa_ray.benchmarks.quality_data import DataSet, Values, without_near_duplicates
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.hybrid_report import chosen_weight, rank
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.retriever.embedder import Embedder, EmbedOptions
from rqa_ray.retriever.encoder_settings import ModelSpec
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.settings import HYBRID, TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.assembly import assemble
from rqa_ray.training.candidate import BASE, Candidate, StateDict, Weights
from rqa_ray.training.finish import Choice, EvalQuestions, Finish, finish_here
from rqa_ray.training.mining_pass import MiningPass
from rqa_ray.training.trainer import ContrastiveTrainer

GIVEN = "given negatives"
METRIC = "eval_retr/document_ndcg/ndcg10"
MINED = 4  # negatives of a question, as in best.json
NO_MARGIN = 1000.0  # above the score of every passage


@dataclass(frozen=True)
class Setup:
    """What all runs on all data sets share."""

    model: ModelSpec
    batch_size: int
    learning_rate: float
    temperature: float
    bf16: bool

    @property
    def eval_precision(self) -> torch.dtype | None:
        return torch.bfloat16 if self.bf16 else None


@dataclass(frozen=True)
class Recipe:
    """How this project trains, beside what all recipes share."""

    settings: dict[str, Any] = field(default_factory=dict)  # of TrainSettings
    filters: bool = True  # whether near-duplicates of golds are no negatives


_MINED = {"mine_negatives": MINED, "negatives_per_question": 1, "hard_neg_ratio": 0.0}

OWN: dict[str, Recipe] = {
    "in-batch": Recipe({"hard_neg_ratio": 0.0}),
    GIVEN: Recipe({"negatives_per_question": 1, "hard_neg_ratio": 0.0}),
    "mined, no filter": Recipe(_MINED | {"mine_margin": NO_MARGIN}, filters=False),
    "mined": Recipe(_MINED),
    "mined, teacher": Recipe(_MINED | {"teacher": HYBRID, "distill_weight": 0.5}),
    "mined again": Recipe(_MINED | {"mine_every": 0.34}),
}


@dataclass
class Ranked:
    """The values of one model on all questions, alone and with BM25."""

    values: Values
    hybrid: Values


@dataclass
class Trained:
    """What a run has made."""

    last: Ranked  # the model of the last step
    finished: Ranked | None  # the model that `--finish merge` chooses; None if the finish was not asked for
    choice: str  # what the finish says, or nothing
    texts: int  # encoded in training


@dataclass
class Base:
    """The pretrained model on one data set: its rankings, and the candidates that it finds for training questions."""

    ranked: Ranked
    bm25: Values
    evaluation: Evaluation
    candidates: MiningPass


def rank_base(data: DataSet, setup: Setup) -> Base:
    """Ranks and mines with the pretrained model, in one pass over the corpus."""
    settings = _settings(setup, _MINED | {"teacher": HYBRID})
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        trainer = _trainer(data, setup, settings, 1, 0, scratch)
        assert trainer.rounds
        candidates = trainer.rounds.start(0, 1)
        assert candidates
        found = trainer.rank_questions(candidates)
        assert data.tokenized.bm25
        return Base(_ranked(data, found), data.values(data.tokenized.bm25), found, candidates)


def train_own(
    data: DataSet, setup: Setup, base: Base, recipe: Recipe, num_texts: int, seed: int, finishes: bool
) -> Trained:
    """Trains by a recipe until `num_texts` texts are encoded; then chooses a model, if the run `finishes`."""
    settings = _settings(setup, recipe.settings)
    with tempfile.TemporaryDirectory(prefix="rqa_ray-") as scratch:
        # the number of texts of a batch is known when its negatives are
        trainer = _trainer(data, setup, settings, 1, seed, scratch)
        pretrained = _copy(trainer.evaluator.embedder.encoder.state_dict()) if finishes else {}
        if trainer.rounds:
            candidates = copy.copy(base.candidates)
            texts = trainer.rounds.texts
            candidates.texts = texts if recipe.filters else without_near_duplicates(texts)
            trainer.rounds.finish(candidates, float("nan"))
        per_step = len(trainer.batches.make(0).order)
        trainer.args.max_steps = max(1, round(num_texts / per_step))
        trainer.train()
        num_encoded = sum(len(trainer.batches.make(number).order) for number in range(trainer.state.global_step))
        found = trainer.rank_questions()
        last = _ranked(data, found)
        if not finishes:
            return Trained(last, None, "", num_encoded)
        choice = _finish(data, setup, base, trainer, pretrained, found)
        return Trained(last, _ranked(data, choice.evaluation), "; ".join(choice.describe()), num_encoded)


def _finish(
    data: DataSet, setup: Setup, base: Base, trainer: ContrastiveTrainer, pretrained: StateDict, last: Evaluation
) -> Choice:
    """Chooses as `--finish merge` does, with the last step as the only checkpoint."""
    evaluator, step = trainer.evaluator, trainer.state.global_step
    tuned = _copy(evaluator.embedder.encoder.state_dict())
    questions = EvalQuestions(data.asked["eval"].gold_ids, data.passage_ids, data.clusters["eval"])
    finish, known = Finish("merge", METRIC, questions), {BASE: base.evaluation, Candidate((step,)): last}
    weights = Weights(pretrained, {step: tuned}.__getitem__)
    return finish_here(finish, [step], weights, evaluator, lambda _: setup.temperature, known)


def _copy(state: StateDict) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def rank_folder(data: DataSet, setup: Setup, folder: str) -> Ranked:
    """Ranks with a saved model."""
    encoder = load_encoder(folder, setup.model.settings, 0.0, False)
    options = replace(EmbedOptions.for_device(encoder), mixed_precision=setup.eval_precision)
    given = data.tokenized
    evaluator = RetrievalEvaluator(given.corpus, given.questions, Embedder(encoder, options), given.bm25)
    return _ranked(data, evaluator.evaluate(setup.temperature))


def _settings(setup: Setup, more: dict[str, Any]) -> TrainSettings:
    return TrainSettings(temperature=setup.temperature, dropout=0.0, **more)


def _trainer(
    data: DataSet, setup: Setup, settings: TrainSettings, steps: int, seed: int, scratch: str
) -> ContrastiveTrainer:
    args = RetrieverTrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        learning_rate=setup.learning_rate,
        per_device_train_batch_size=setup.batch_size,
        bf16=setup.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=5,
        disable_tqdm=True,
        seed=seed,
        ddp_broadcast_buffers=False,
        metric_for_best_model=METRIC,
        logging_nan_inf_filter=False,
    )
    tokenized = data.tokenized if settings.mine_negatives else replace(data.tokenized, mining=None)
    encoder = load_encoder(setup.model.folder, setup.model.settings, settings.dropout, False)
    size = min(setup.batch_size, len(data.tokenized.rows))
    return assemble(
        encoder, args, settings, tokenized, size, eval_precision=setup.eval_precision, evaluates_beside=True
    )


def _ranked(data: DataSet, found: Evaluation) -> Ranked:
    """Returns the values of a model, and of its hybrid with the weight chosen on the eval questions."""
    weight = chosen_weight(data.bm25, data.asked["eval"], found.splits["eval"], data.passage_ids)
    hybrid = {
        split: rank(data.bm25, data.asked[split].questions, result, [weight])[weight]
        for split, result in found.splits.items()
    }
    return Ranked(data.values({split: one.positions for split, one in found.splits.items()}), data.values(hybrid))
