"""The one exception that is meant for the person at the terminal."""


class BadInput(Exception):
    """Something the user gave cannot be used: what, where, and what is allowed, in one line.

    `python -m src.run` prints it without a traceback and exits with code 2.
    """
