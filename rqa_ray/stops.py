"""Ends a job after Ctrl-C or SIGTERM, also where a library swallows the exception."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 15.0  # how long a job may take to end by itself
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to end; `code` is the exit code for it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM raise `Stop` in a block, and makes sure that the process ends.

    An exception that comes while a library is imported, or in a callback, may be lost. So the process ends at once
    after a second signal, and otherwise 15 s after the first one.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    asked = False

    def on_signal(number: int, _: Any) -> None:
        nonlocal asked
        code = 128 + number
        if asked:
            os._exit(code)
        asked = True
        watch = threading.Timer(GRACE_SECONDS, _end, [code])
        watch.daemon = True
        watch.start()
        raise Stop(code)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        if not asked:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(code: int) -> None:
    print("stopped, without waiting any longer for a library to end", file=sys.stderr, flush=True)
    os._exit(code)
