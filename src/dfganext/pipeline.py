"""Run a stage's main function: errors as one sentence, and exit codes."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from dfganext import runtime
from dfganext.errors import UserError

INTERRUPTED = 130
"""Exit code of a stage that was stopped: 128 + SIGINT, as in shells."""

STOPPED = "stopped: run the same command again to go on"

FULL = ("No space left on device", "disk is full")
"""What the system and SQLite say."""

NO_ACCESS = {errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says of a file that this user may not read or write."""

FULL_BYTES = 2**20
"""Free space of a disk that counts as full: an output or a database needs more."""


def run(main: Callable[[], None]) -> NoReturn:
    """Call a stage's `main`, then end the process with `exit_code`'s result."""
    runtime.leave(exit_code(main))


def exit_code(main: Callable[[], None]) -> int:
    """Call a stage's `main`; returns the exit code of its process.

    A UserError is printed to stderr without a traceback, and the exit code is 1; so are a full disk and a file that may not be
    read or written. Ctrl-C and SIGTERM both raise KeyboardInterrupt in `main`, and the exit code is 130. Any other exception is a
    bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _is_full(error):
            message = f"No space left on the disk of {Path.cwd()}: free some, then run the same command again."
        elif isinstance(error, OSError) and error.errno in NO_ACCESS and error.filename:
            message = (
                f"{error.filename} cannot be used ({error.strerror}): make it readable and writable for this user."
            )
        elif isinstance(error, UserError):
            message = str(error)
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is the reason. Some libraries raise errors that do not say so: then the free space tells."""
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) == errno.ENOSPC or any(words in str(chain) for words in FULL):
            return True
        chain = chain.__cause__ or chain.__context__
    return not isinstance(error, UserError) and shutil.disk_usage(".").free < FULL_BYTES


def require(inputs: Iterable[Path]) -> None:
    """UserError if an input of a stage is missing: DVC makes it, but a stage can also be run by hand."""
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} is missing: run `dvc repro` to create it.")
