"""The flags of a small search."""

import pytest


@pytest.fixture(scope="session")
def flags(files, tiny_model) -> list[str]:
    """Flags of a search whose trials end in a second and see 96 questions, of 48 different ones, in 4 evaluations."""
    named = {
        **files,
        "model_name_or_path": str(tiny_model),
        "max_seq_length": "32",
        "max_steps": "12",
        "logging_steps": "1",
        "global_batch_size": "8",
        "hard_neg_ratio": "0.25",
        "metric_for_best_model": "eval_retr/document_ndcg/ndcg10",
    }
    return [word for name, value in named.items() for word in (f"--{name}", value)]
