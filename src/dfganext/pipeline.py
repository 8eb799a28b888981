"""Run a stage's main function: errors as one sentence, and exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from dfganext import runtime
from dfganext.errors import UserError

INTERRUPTED = 130
"""Exit code of a stage that was stopped: 128 + SIGINT, as in shells."""

STOPPED = "stopped: run the same command again to go on"


def run(main: Callable[[], None]) -> NoReturn:
    """Call a stage's `main`, then end the process with `exit_code`'s result."""
    runtime.leave(exit_code(main))


def exit_code(main: Callable[[], None]) -> int:
    """Call a stage's `main`; returns the exit code of its process.

    A UserError is printed to stderr without a traceback, and the exit code is 1. Ctrl-C and SIGTERM both raise
    KeyboardInterrupt in `main`, and the exit code is 130. Any other exception is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    return 0
