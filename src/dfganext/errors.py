"""The exception for errors that the user can correct."""

import textwrap


class UserError(Exception):
    """An error that the user can correct. The message is one sentence that names the file or key and what to do.

    Commands and stages print the message without a traceback and exit with a code other than 0.
    """


def one_line(error: BaseException) -> str:
    """The message of another library's exception on one line, to put in a sentence; its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """The type and the message of another library's exception on one line, shortened."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 240).removesuffix(":")
