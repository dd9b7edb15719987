"""Imports large modules faster."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Keeps Python from looking for unused objects while a block imports modules.

    torch, transformers and sentence-transformers make a million objects, all of them used. To look for unused ones
    again and again would take a fifth of the time of their import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
