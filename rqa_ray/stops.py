"""Ends a job with one line: after a mistake of the user, and after Ctrl-C or SIGTERM.

A job enters `user_errors` before it imports anything large, because such an import takes seconds. So this file imports
little.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rqa_ray.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or a used up quota
GRACE_SECONDS = 15.0  # how long a job may take to end by itself
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to end; `code` is the exit code for it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


@contextmanager
def user_errors(when_stopped: str = "stopped") -> Iterator[None]:
    """Ends a job with one line and exit code 2 after an InputError, 130 after Ctrl-C, 143 after SIGTERM.

    Characters that the terminal's encoding lacks are printed as `?`.
    """
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with stop_on_signals():
            yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print(f"error: {error.filename or 'output'}: no space left; free some, and go on", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        print(when_stopped)
        raise SystemExit(getattr(stop, "code", 130)) from None


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
