"""InputError, the exception for mistakes that the user can correct, and exceptions as one line."""

import importlib.util

from rqa_ray.credentials import masked
from rqa_ray.texts import printable


class InputError(ValueError):
    """The user's input or arguments are wrong. The message is one line: what is wrong, what was found, what to do.

    Jobs print it on stderr and exit with code 2, without a traceback. Credentials in the message are masked, and
    characters that a terminal would not show are escaped, because the message may quote any file.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(masked(str(message))))


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or the name of its class if there is no message."""
    return _lines(error)[0]


def last_line(error: BaseException | str) -> str:
    """Returns the last line of an exception's message, which in a worker's traceback is the reason.

    Else as `first_line`.
    """
    return _lines(error)[-1]


def _lines(error: BaseException | str) -> list[str]:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return [printable(masked(line)) for line in lines]


def need_extra(what: str, extra: str, module: str) -> None:
    """Raises InputError if a module that `what` needs is missing; names the extra that installs the module."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f'{what}: needs {module}: pip install -e ".[{extra}]"')
