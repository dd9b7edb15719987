"""The flags of a small run."""

import pytest


@pytest.fixture(scope="session")
def flags(train_flags) -> list[str]:
    return train_flags
