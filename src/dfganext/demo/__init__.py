"""`dfganext demo`: a page on this machine that decides on images that are dropped on it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING

from dfganext.errors import UserError

if TYPE_CHECKING:  # importing Gradio takes seconds
    from gradio import Blocks

    from dfganext.demo.page import Page
    from dfganext.demo.uploads import Uploads

HOST = "127.0.0.1"
PORT = 7860
CLEANING_INTERVAL = 60.0
"""Seconds between searches for uploaded files that nobody asked to read."""


def serve(
    uri: str | None, port: int = PORT, on_ready: Callable[[str], object] = print, stop: threading.Event | None = None
) -> None:
    """Serve the page until the process gets SIGINT or SIGTERM.

    Args:
        uri: of the model, as for `tracking.registry.resolve`; None: the champion.
        on_ready: called with the page's address.
        stop: ends the page when it is set, in place of SIGTERM.

    Raises:
        UserError: there is no such model, or the port cannot be used.
    """
    from dfganext.demo.uploads import Uploads

    with ExitStack() as stack:
        stop = stop or stack.enter_context(_stopped_by_sigterm())
        uploads = stack.enter_context(closing(Uploads()))
        blocks = _launch(_load(uri, uploads), port)
        stack.callback(blocks.close, verbose=False)
        on_ready(f"http://{HOST}:{port}")
        with suppress(KeyboardInterrupt):
            while not stop.wait(CLEANING_INTERVAL):
                uploads.remove_old()


def _load(uri: str | None, uploads: Uploads) -> Page:
    """The page of a model. A downloaded model is removed once it is in memory."""
    # these are read on import, and when the server is made: no analytics, no look-ups, uploads into our folder
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(uploads.folder)}
    from dfganext.demo import facts
    from dfganext.demo.analysis import Analyser
    from dfganext.tracking import registry

    pinned = registry.pinned(uri)
    with registry.resolve(pinned) as folder:
        analyser = Analyser(folder)
        from dfganext.demo.page import Page

        return Page(analyser, facts.read(pinned, folder, analyser.detector, champion=uri is None), uploads)


def _launch(page: Page, port: int) -> Blocks:
    """Start the server in threads."""
    from dfganext.demo.page import launch_options

    blocks = page.blocks()
    try:
        blocks.launch(server_name=HOST, server_port=port, **launch_options())
    except OSError:
        raise UserError(f"Port {port} of {HOST} cannot be used: name another with --port.") from None
    return blocks


@contextmanager
def _stopped_by_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: the default would leave uploaded files behind."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
