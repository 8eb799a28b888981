"""Which local files are images, in one order on every machine, and their bytes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dfganext.errors import UserError

MAX_FILE_BYTES = 2**29
TOO_LARGE = f"more than {MAX_FILE_BYTES // 2**20} MiB"

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm", ".pbm")
"""In a folder, files so named are images even where their content is damaged; others are if their content begins like one."""

BEGINNING_BYTES = 256

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|BM.{4}\0{4}|\0{3}\x0cjP  |\xffO\xffQ|P[1-6]\s+(#.*\n\s*)?\d+\s+\d+\s",
    re.DOTALL,
)


BATCH_FILES, BATCH_BYTES = 32, 64 * 2**20
"""A batch of images that are judged at once ends at either, so that memory stays flat."""


class Found(NamedTuple):
    """An image file: where it is, its size in bytes, and when it was last modified, in ns since 1970 (None: not known).

    Size and time tell one content under this path from the next.
    """

    path: str
    size: int
    modified: int | None = None


class Unread(NamedTuple):
    """Why there are no bytes of a file. temporary: for a reason that may pass, such as an I/O error or a missing permission."""

    reason: str
    temporary: bool


def find_images(paths: Iterable[str]) -> list[Path]:
    """The files among `paths` and the images in the folders among them, however deep, each once, in the order of their paths.

    Below a folder, links to files are followed, those to folders are not: they may lead round in circles, or to the same images
    again. Name such a folder itself to have its images.

    Raises:
        UserError: a path does not exist or cannot be looked at, or there is no image at all.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        here = exists(path)
        if here and path.is_dir():
            found.update(Path(image.path) for image in images_below(path))
        elif here:
            found.add(path)
        else:
            raise UserError(f"{path} does not exist: give files or folders that do.")
    if not found:
        raise UserError(
            f"There is no image in {', '.join(map(str, paths))}: give files, or folders with images in them."
        )
    return sorted(found, key=str)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder. UserError where that cannot be known."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{path} cannot be looked at ({error.strerror}): give another path.") from None


def images_below(folder: Path) -> Iterator[Found]:
    """Every image below a folder, however deep, in the order of their paths.

    A folder that cannot be listed comes in the place of its images, and a link that leads nowhere as itself, for `read` to say
    so: they are not passed over. Links to folders are.
    """
    return in_order(f"{str(folder).rstrip('/')}/", _entries)


def in_order(root: str, entries: Callable[[str], Iterable[Found]]) -> Iterator[Found]:
    """Every file below a folder in the order of their whole paths, with one folder's entries in memory at a time.

    Args:
        root: the folder, with a slash at its end.
        entries: what is in a folder; paths of folders end in a slash, which is what puts a/b between a-b and a0b.
    """
    pending = [Found(root, 0)]  # the last one is next
    while pending:
        here = pending.pop()
        if not here.path.endswith("/"):
            yield here
            continue
        try:
            pending += sorted(entries(here.path), reverse=True)
        except OSError:
            yield Found(here.path.rstrip("/"), 0)


def named_like_image(path: str) -> bool:
    """Whether a file's name says that it is an image."""
    return path.lower().endswith(SUFFIXES)


def begins_like_image(beginning: bytes) -> bool:
    """Whether a file whose first bytes (at least 32, or all) these are is one of an image format."""
    return _BEGINNINGS.match(beginning) is not None


def read(path: str | Path) -> bytes | Unread:
    """A file's bytes, or why they could not be read."""
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            next(path.iterdir(), None)  # says why a folder is here in the place of its images
        if not stat.S_ISREG(found.st_mode):
            return Unread("not a regular file", temporary=False)
        return path.read_bytes() if found.st_size <= MAX_FILE_BYTES else Unread(TOO_LARGE, temporary=False)
    except OSError as error:
        return Unread(f"cannot be read ({error.strerror})", temporary=True)


def found_at(path: str, status: os.stat_result) -> Found:
    """A local file with the size and time of its status."""
    return Found(path, status.st_size, status.st_mtime_ns)


def _entries(folder: str) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Found(f"{entry.path}/", 0)
            else:
                try:
                    found = entry.stat()
                except OSError:  # a link that leads nowhere, for `read` to say so where it is named like an image
                    if named_like_image(entry.name):
                        yield Found(entry.path, 0)
                    continue
                if stat.S_ISREG(found.st_mode) and (named_like_image(entry.name) or _begins_like_image(entry.path)):
                    yield found_at(entry.path, found)


def _begins_like_image(path: str) -> bool:
    try:
        with Path(path).open("rb") as stream:
            return begins_like_image(stream.read(BEGINNING_BYTES))
    except OSError:
        return False
