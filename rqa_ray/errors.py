"""The one exception for what the user can mend."""


class InputError(ValueError):
    """The user's input or arguments are wrong. The message is one line: what is wrong, what was found, what to do.

    The jobs print it on stderr and exit with code 2, without a traceback.
    """
