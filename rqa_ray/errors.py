"""The one exception for what the user can mend."""

import importlib.util


class InputError(ValueError):
    """The user's input or arguments are wrong. The message is one line: what is wrong, what was found, what to do.

    The jobs print it on stderr and exit with code 2, without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; the name of its class where it says nothing."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last line, which in a traceback of a worker is the reason; else as `first_line`."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def need_extra(what: str, extra: str, module: str) -> None:
    """Raises InputError where the module that `what` needs, and an extra of this package installs, is missing."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f'{what}: needs {module}: pip install -e ".[{extra}]"')
