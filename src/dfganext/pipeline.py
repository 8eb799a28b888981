"""How a stage ends: quietly, or with one sentence for the person at the keyboard."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from dfganext.errors import UserError

INTERRUPTED = 130
"""Exit code of a stage that was stopped (128 + SIGINT), as shells have it."""


def run(main: Callable[[], None]) -> None:
    """Call a stage's `main` and leave the process if it failed.

    A UserError is printed as "error: ..." to stderr, without a traceback, exit code 1. Ctrl-C and SIGTERM alike raise
    KeyboardInterrupt in `main`, which may tidy up; exit code 130. Any other exception is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
