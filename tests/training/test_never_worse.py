"""Runs that are made to fail leave no model that is worse than the pretrained one; their last steps are.

`pytest -m slow -s tests/training/test_never_worse.py` prints a table of the runs.
"""

import codecs
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import TrainerCallback

from rqa_ray.data.demo import write_demo
from rqa_ray.data.records import good_records
from rqa_ray.data.rows import Corpus, Questions, TrainingRows
from rqa_ray.data.schema import QARecord
from rqa_ray.data.token_tables import document_rows, question_rows, to_table, train_rows
from rqa_ray.evaluation.confidence import paired_difference
from rqa_ray.evaluation.evaluator import RetrievalEvaluator
from rqa_ray.evaluation.metrics import HEADLINES, LABELS
from rqa_ray.evaluation.results import Evaluation
from rqa_ray.retriever.encoder_settings import ModelSpec, read_settings
from rqa_ray.retriever.folder import load_encoder
from rqa_ray.retriever.tokenizer import TextTokenizer
from rqa_ray.settings import TrainSettings
from rqa_ray.training.arguments import RetrieverTrainingArguments
from rqa_ray.training.assembly import TrainingData, assemble
from rqa_ray.training.candidate import BASE, Candidate, Weights
from rqa_ray.training.finish import Choice, EvalQuestions, Finish, finish_here
from rqa_ray.training.trainer import ContrastiveTrainer

METRIC = "eval_retr/document_recall/recall4"
SEEDS = range(4)
BATCH, STEPS, RATE, TEMPERATURE = 16, 8, 1e-4, 0.05


@dataclass
class Data:
    """The built-in data, small, and its tokenizer."""

    model: ModelSpec
    tokenizer: TextTokenizer
    train: list[QARecord]
    corpus: Corpus
    questions: Questions


def wrong_labels(records: list[QARecord], generator: random.Random) -> list[QARecord]:
    golds = [record.gold_docs for record in records]
    generator.shuffle(golds)
    return [replace(record, gold_docs=gold) for record, gold in zip(records, golds, strict=True)]


def one_source(records: list[QARecord], generator: random.Random) -> list[QARecord]:
    folders = [str(record.gold_docs[0].metadata["source"]).split("/")[0].split(":")[0] for record in records]
    large = sorted(name for name in set(folders) if folders.count(name) >= BATCH)
    chosen = generator.choice(large)
    return [record for record, name in zip(records, folders, strict=True) if name == chosen]


def other_language(records: list[QARecord], generator: random.Random) -> list[QARecord]:
    """Questions whose letters are shifted: words that the model has never read."""
    return [
        replace(record, questions=[codecs.encode(text, "rot13") for text in record.questions]) for record in records
    ]


# What is done to the training records, and to the learning rate.
CASES = {
    "wrong labels": (wrong_labels, 1),
    "learning rate x 100": (lambda records, generator: records, 100),
    "16 pairs": (lambda records, generator: generator.sample(records, BATCH), 1),
    "one source": (one_source, 1),
    "other language": (other_language, 1),
}


class Kept(TrainerCallback):
    """Keeps evaluation and weights of each evaluated step."""

    def __init__(self, trainer: ContrastiveTrainer) -> None:
        self.trainer = trainer
        self.found: dict[int, Evaluation] = {}
        self.weights: dict[int, dict] = {}

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.found[state.global_step] = self.trainer.found
        self.weights[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def data(minilm, tmp_path_factory) -> Data:
    files = write_demo(tmp_path_factory.mktemp("demo"), 400, 120, 1, max_chars=200)
    model = ModelSpec(minilm, read_settings(minilm, max_seq_length=40))
    tokenizer = TextTokenizer.load(model)
    train, held_out, documents = (
        list(good_records([str(files[name])], kind))
        for name, kind in (
            ("train_file", "questions"),
            ("eval_file", "questions"),
            ("full_dataset_file_path", "documents"),
        )
    )
    asked = {gold.passage_id for record in held_out for gold in record.gold_docs}
    documents = [one for place, one in enumerate(documents) if one.passage_id in asked or place % 3 == 0]
    corpus = Corpus.from_tables([to_table(document_rows(numbered(documents), tokenizer), "corpus")])
    questions = Questions.from_tables([to_table(question_rows(numbered(held_out), tokenizer), "questions")])
    return Data(model, tokenizer, train, corpus, questions)


def numbered(records: Iterable) -> list:
    return list(enumerate(records))


def run(data: Data, case: str, seed: int, folder: Path) -> tuple[Kept, RetrievalEvaluator]:
    """Trains on what the case makes of the data; evaluates before, half-way and at the end."""
    change, factor = CASES[case]
    records = change(data.train, random.Random(seed))
    encoder = load_encoder(data.model.folder, data.model.settings, dropout=0.0)
    rows = TrainingRows.from_tables([to_table(train_rows(numbered(records), data.tokenizer, set()), "train")])
    args = RetrieverTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        eval_steps=STEPS // 2,
        learning_rate=RATE * factor,
        eval_on_start=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        metric_for_best_model=METRIC,
        seed=seed,
    )
    settings = TrainSettings(hard_neg_ratio=0.0, temperature=TEMPERATURE)
    trainer = assemble(encoder, args, settings, TrainingData(rows, data.corpus, {"eval": data.questions}), BATCH)
    trainer._save_checkpoint = lambda *_: None
    kept = Kept(trainer)
    trainer.add_callback(kept)
    trainer.train()
    return kept, trainer.evaluator


def is_worse(questions: EvalQuestions, before: Evaluation, after: Evaluation) -> bool:
    """Whether recall@4 or nDCG@10 has fallen by more than chance."""
    old, new = questions.values(before), questions.values(after)
    changes = [paired_difference(old[LABELS[n]], new[LABELS[n]], questions.clusters) for n in HEADLINES]
    return any(change.mean < 0 and change.p_value < 0.05 for change in changes)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_run_that_fails_leaves_a_worse_model(case, data, tmp_path) -> None:
    worse = dict.fromkeys(("last step", "none", "best", "merge"), 0)
    print(f"\nnDCG@10: seed | pretrained | {' | '.join(worse)} | chosen by merge")
    for seed in SEEDS:
        kept, evaluator = run(data, case, seed, tmp_path)
        questions = EvalQuestions.of(evaluator)
        known = {Candidate((step,)) if step else BASE: found for step, found in kept.found.items()}
        choices: dict[str, Choice] = {}
        for kind in ("none", "best", "merge"):
            weights = Weights(kept.weights[0], kept.weights.__getitem__)
            steps = [step for step in kept.found if step]
            finish = Finish(kind, METRIC, questions)
            choices[kind] = finish_here(finish, steps, weights, evaluator, lambda _: TEMPERATURE, known)
            assert choices[kind].candidate != BASE or choices[kind].describe()[0].endswith("weights are kept")
        left = {"last step": kept.found[STEPS]} | {kind: choice.evaluation for kind, choice in choices.items()}
        for kind, found in left.items():
            worse[kind] += is_worse(questions, kept.found[0], found)
        values = [found.metrics[f"eval_{LABELS['nDCG@10']}"] for found in (kept.found[0], *left.values())]
        print(seed, *(f"{value:.3f}" for value in values), choices["merge"].candidate, sep=" | ", flush=True)
    print(f"{case}, runs that leave a model that is worse beyond chance: {worse}")
    assert worse["best"] == worse["merge"] == 0
    assert worse["last step"] == len(SEEDS) or case not in ("wrong labels", "learning rate x 100")
