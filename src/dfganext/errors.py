"""The exception for errors that the user can correct, and texts for messages."""

import re
import textwrap


class UserError(Exception):
    """An error that the user can correct. The message is one sentence that names the file or key and what to do.

    Commands and stages print the message without a traceback and exit with a code other than 0.
    """


def one_line(error: BaseException) -> str:
    """The message of another library's exception on one line, to put in a sentence; its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def redact(url: str) -> str:
    """A URL for messages and reports, without its password and its query, which may hold a signature."""
    return re.sub("(?<=://)[^/]*@", "", re.split("[?#]", url, maxsplit=1)[0])


def reason(error: BaseException) -> str:
    """The type and the message of another library's exception on one line, shortened."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 240).removesuffix(":")
