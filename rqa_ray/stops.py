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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rqa_ray.credentials import MaskedStream
from rqa_ray.errors import InputError
from rqa_ray.texts import printable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or a used up quota
AGAIN_SECONDS = 3.0  # until the exception is raised again if it has not left the block
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

    Characters that the terminal's encoding lacks are printed as `?`. Credentials are masked in all that is printed,
    also in the traceback of an error that nobody expected.
    """
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for name in ("stdout", "stderr"):  # for the rest of the process: a traceback is printed after the block
        if not isinstance(getattr(sys, name), MaskedStream):
            setattr(sys, name, MaskedStream(getattr(sys, name)))
    try:
        with stop_on_signals():
            yield
    except InputError as error:
        # Ray raises an InputError of its tasks again, with the task's traceback as the message.
        print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print(
            f"error: {printable(str(error.filename or 'output'))}: no space left; free some, and go on",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        print(when_stopped)
        raise SystemExit(getattr(stop, "code", 130)) from None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM raise `Stop` in a block, and makes sure that the process ends.

    An exception that comes while a library is imported, or in a callback, may be lost: Cython swallows those that it
    meets while it patches modules. So the exception is raised again after 3 s, and the process ends after 15 s, or at
    once after a second signal.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    asked = again = has_left = False

    def on_signal(number: int, _: Any) -> None:
        nonlocal asked, again
        if again and has_left:
            return
        if asked and not again:
            os._exit(128 + number)
        if not asked:
            threading.Thread(target=watch, args=(number,), daemon=True).start()
        asked, again = True, False
        raise Stop(128 + number)

    def watch(number: int) -> None:
        nonlocal again
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() + AGAIN_SECONDS < deadline:
            time.sleep(AGAIN_SECONDS)
            if not has_left:
                again = True
                signal.pthread_kill(threading.main_thread().ident, number)  # type: ignore[arg-type]
        time.sleep(max(0.0, deadline - time.monotonic()))
        print("stopped, without waiting any longer for a library to end", file=sys.stderr, flush=True)
        os._exit(128 + number)

    hook = sys.unraisablehook  # it prints a traceback of an exception that is lost
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Stop) else hook(lost)
    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        has_left, sys.unraisablehook = True, hook
        if not asked:
            for number, handler in before.items():
                signal.signal(number, handler)
