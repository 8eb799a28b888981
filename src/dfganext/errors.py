"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right; the message is one sentence that names the file or key and what to do.

    Command lines and stages print the message without a traceback and exit with a code other than 0.
    """


def one_line(error: BaseException) -> str:
    """What another library's exception says, on one line, to be part of a sentence; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
