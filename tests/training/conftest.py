"""The flags of a small run."""

import pytest


@pytest.fixture(scope="session")
def flags(files, tiny_model) -> list[str]:
    """The flags of a run that ends in seconds; one epoch is 7 steps."""
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
