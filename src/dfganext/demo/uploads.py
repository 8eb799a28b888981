"""The folder of uploaded files: each file is removed as soon as it has been read, and the folder when the demo ends."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from dfganext.data.discovery import MAX_FILE_BYTES, Unread, read

MEMORY = Path("/dev/shm")  # noqa: S108 - each demo makes a folder of its own in it, for its user alone
"""A file system in memory, on Linux."""

MAX_AGE = 600.0
"""Seconds after which a file is removed that nobody asked to read, as of a page that was closed during an upload."""


class Uploads:
    """A new folder for uploaded files that only this user can enter.

    in_memory: whether it is in memory: where `MEMORY` exists and has space for two files of the maximum size. Elsewhere it is in the
    system's temporary folder.
    """

    def __init__(self) -> None:
        self.in_memory = _has_space(MEMORY)
        made = tempfile.mkdtemp(prefix="dfganext-demo-", dir=MEMORY if self.in_memory else None)  # mode 0700
        self.folder = Path(made).resolve()

    def take(self, path: str) -> bytes | Unread:
        """Read an uploaded file and remove it. A path outside the folder is not read."""
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder):
            return Unread("not an uploaded file", temporary=False)
        try:
            return read(file)
        finally:
            self._remove(file)

    def discard(self, path: str) -> None:
        """Remove an uploaded file without reading it."""
        file = Path(path).resolve()
        if file.is_relative_to(self.folder):
            self._remove(file)

    def remove_old(self, age: float = MAX_AGE) -> None:
        """Remove the files that are older than `age` seconds."""
        for folder, _, names in os.walk(self.folder):  # it passes over folders that are removed meanwhile
            for file in (Path(folder) / name for name in names):
                with suppress(FileNotFoundError):  # taken meanwhile
                    if time.time() - file.stat().st_mtime > age:
                        self._remove(file)

    def close(self) -> None:
        """Remove the folder with all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # another file is in it
            if file.parent != self.folder:
                file.parent.rmdir()


def _has_space(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= 2 * MAX_FILE_BYTES
    except OSError:
        return False
