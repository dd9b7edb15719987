"""Small question files on which training takes seconds."""

import json
import random
from pathlib import Path

import pytest

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """train (24 lines, 48 questions), eval, test, documents: a passage is a few words, a question some of them."""
    folder = tmp_path_factory.mktemp("small-data")
    generator = random.Random(0)
    documents = []
    for number in range(60):
        words = " ".join(generator.choices(WORDS, k=generator.randint(4, 12)))
        documents.append({"page_content": words, "metadata": {"source": f"doc/{number}", "title": WORDS[number % 19]}})
    splits = {"train": range(24), "eval": range(24, 36), "test": range(36, 48)}
    paths = {"full_dataset_file_path": write_lines(folder / "documents.jsonl", documents)}
    for split, numbers in splits.items():
        records = []
        for number in numbers:
            words = documents[number]["page_content"].split()
            questions = [" ".join(generator.sample(words, 3)) for _ in range(2)]
            golds = [documents[number]] + ([documents[number + 1]] if number % 6 == 0 else [])
            negatives = [documents[(number + 7) % 60], documents[(number + 11) % 60]]
            records.append(
                {"questions": questions, "gold_docs": golds, "hard_neg_docs": negatives, "chat_history": []}
            )
        paths[f"{split}_file"] = write_lines(folder / f"{split}.jsonl", records)
    return paths


def write_lines(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="session")
def flags(files, tiny_model) -> list[str]:
    """The flags of a run that ends in seconds; one epoch is 6 steps."""
    named = {
        **files,
        "model_name_or_path": str(tiny_model),
        "max_seq_length": "32",
        "max_steps": "12",
        "eval_steps": "4",
        "logging_steps": "1",
        "per_device_train_batch_size": "8",
        "hard_neg_ratio": "0.25",
        "learning_rate": "1e-3",
    }
    return [word for name, value in named.items() for word in (f"--{name}", value)]
